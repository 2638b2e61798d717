"""Completions: tokens and log-probabilities are transformers', and recomputed patches are exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from schemas.activations import ActivationsRequest
from schemas.adapters import Adapter
from schemas.common import UNSET
from schemas.completions import Completion, CompletionRequest, Recompute, RecomputedPatch
from schemas.pairs import AnotherContext
from service.analysis.activations import plan_activations
from service.analysis.completions import plan_completion
from service.engine import Activations, Follow, Model, Run, Site, drive, fetch, joined
from service.engine.prefixes import Prefixes
from service.engine.question import SMALL_PACK
from service.engine.walk import forward
from service.errors import NoRowsPatched, ServiceError
from service.theory import LowRank, StaticUpdate, kl_divergence
from tests.analysis.subjects import Subject, agree
from tests.conftest import BUNDLED

CONTEXT = "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C."
PROMPT = " The capital of Germany is"
EXACT = 1e-11
"""Bound of the KL divergence of a recomputed patch on the bundled model, in nats."""
COUNT = 16
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"seed": 5},
    "sampled from a nucleus": {"seed": 6, "temperature": 0.8, "top_p": 0.9},
}


@dataclass(frozen=True)
class Loaded:
    """An adapter without files."""

    id: str
    updates: Mapping[int, StaticUpdate]
    record: Adapter


def adapter(updates: Mapping[int, StaticUpdate], baseline: Any = "alone") -> Loaded:
    """An adapter with these updates. Of its record, only the baseline is read."""
    record: Any = type("Record", (), {"baseline": baseline})()
    return Loaded("a" * 32, updates, record)


def complete(model: Model, used: Loaded | None = None, /, **options: Any) -> Completion[Tensor]:
    """The completion of a request."""
    return drive(model, plan_completion(model, CompletionRequest(**options), used))


def events_of(model: Model, /, **options: Any) -> list[Completion[Tensor]]:
    """The events of a stream."""
    events: list[Completion[Tensor]] = []
    body = CompletionRequest(stream=True, **options)
    drive(model, plan_completion(model, body, None, events.append))
    return events


def refusal(model: Model, used: Loaded | None = None, /, **options: Any) -> ServiceError:
    """The error with which a request is refused before any work."""
    with pytest.raises(ServiceError) as caught:
        plan_completion(model, CompletionRequest(**options), used)
    return caught.value


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The bundled model in transformers."""
    return AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)


@pytest.mark.parametrize("prompt", [CONTEXT + PROMPT, "In the beginning God created"])
def test_greedy_tokens_and_log_probabilities_are_those_of_transformers(
    bundled: Model, theirs: Any, prompt: str
) -> None:
    """Greedy tokens equal `generate(do_sample=False)`, and each log-probability, those of the
    prompt included, equals transformers' to 1e-5."""
    answer = complete(bundled, prompt=prompt, max_tokens=16, temperature=0, logprobs=3, echo=True)
    ids = torch.tensor([bundled.tokenizer.encode(prompt)])
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16, pad_token_id=0
    )
    assert answer.tokens == expected[0, ids.shape[1] :].tolist()
    log_p = theirs(expected).logits[0].double().log_softmax(-1)
    following = expected[0, 1:]
    reported = answer.choices[0].logprobs
    assert reported is not None
    assert reported.token_logprobs[0] is None
    own = log_p[:-1].gather(-1, following[:, None])[:, 0].tolist()
    assert reported.token_logprobs[1:] == pytest.approx(own, abs=1e-5)
    assert reported.top_logprobs is not None
    for top, row in zip(reported.top_logprobs[1:], log_p, strict=False):
        assert top is not None
        assert sorted(top.values(), reverse=True)[:3] == pytest.approx(
            row.topk(3).values.tolist(), abs=1e-5, rel=2e-6
        )
    text = answer.choices[0].text
    for token, offset in zip(reported.tokens, reported.text_offset, strict=True):
        assert text[offset:].startswith(token)


@cache
def with_context(model: Model, kind: str, count: int) -> Completion[Tensor]:
    """The plain completion of context and prompt, as ids."""
    ids = [*model.tokenizer.encode(CONTEXT), *model.tokenizer.encode(PROMPT)]
    return complete(model, prompt=ids, max_tokens=count, **SAMPLING[kind])


def recomputed(model: Model, recompute: str, count: int, **options: Any) -> Completion[Tensor]:
    """A completion without the context, under recomputed patches, with its agreement."""
    patch = {"context": CONTEXT, "recompute": recompute}
    return complete(model, prompt=PROMPT, patch=patch, agreement=True, max_tokens=count, **options)


@pytest.mark.parametrize(
    ("recompute", "kind"),
    [
        ("all", "greedy"),
        ("new", "sampled from a nucleus"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("all", "sampled"),
                ("all", "sampled from a nucleus"),
                ("new", "greedy"),
                ("new", "sampled"),
            )
        ),
    ],
)
def test_recomputed_patches_give_the_tokens_of_the_run_with_context(
    bundled: Model, recompute: str, kind: str
) -> None:
    """Every token is that of the plain run that reads the context, whose distribution differs by at
    most 1e-11 nats. Without the patch, the tokens differ."""
    answer = recomputed(bundled, recompute, COUNT, **SAMPLING[kind])
    assert answer.agreement
    assert max(one.kl for one in answer.agreement) <= EXACT
    assert all(one.same_token for one in answer.agreement)
    assert answer.tokens == with_context(bundled, kind, COUNT).tokens
    assert [one.token for one in answer.agreement] == answer.tokens
    assert answer.one_set_of_weights is (recompute == "all")
    length = len(bundled.tokenizer.encode(PROMPT))
    rows = [one.rows_patched for one in answer.agreement]
    if recompute == "all":
        assert rows == list(range(length, length + COUNT))
    else:
        assert rows == [length] + [1] * (COUNT - 1)
    plain = complete(bundled, prompt=PROMPT, max_tokens=COUNT, **SAMPLING[kind])
    assert plain.tokens != answer.tokens


@pytest.mark.slow
@pytest.mark.parametrize("baseline", ["matched", "alone", "anchored", {"context": "cat: animal\n"}])
@pytest.mark.parametrize("recompute", ["all", "new"])
def test_recomputed_patches_are_exact_from_every_baseline(
    bundled: Model, recompute: str, baseline: Any
) -> None:
    """64 tokens agree with the run with context from every baseline."""
    patch = {"context": CONTEXT, "recompute": recompute, "baseline": baseline}
    for options in SAMPLING.values():
        answer = complete(
            bundled, prompt=PROMPT, patch=patch, agreement=True, max_tokens=64, **options
        )
        assert answer.agreement
        assert max(one.kl for one in answer.agreement) <= EXACT
        assert all(one.same_token for one in answer.agreement)


def test_frozen_patch_does_not_give_the_run_with_context(bundled: Model) -> None:
    """The control: the patch of the first token, used for all tokens, diverges."""
    last = Site(bundled.n_layers - 1, "resid_post")
    context, prompt = (bundled.tokenizer.encode(text) for text in (CONTEXT, PROMPT))
    tokens = with_context(bundled, "greedy", COUNT).tokens or ()
    ids, start = (*context, *prompt), len(context)
    first = Run(ids, range(len(ids)), {last: [len(ids) - 1]})
    differ, divergences = 0, []
    for count in (0, 1, 5, 12):
        seen = tokens[:count]
        whole = Run((*ids, *seen), range(len(ids) + count), {last: [len(ids) + count - 1]})
        follow = Follow(first, len(ids) - 1, len(prompt) - 1)
        length = len(prompt) + count
        frozen = Run(
            (*prompt, *seen), range(start, start + length), {last: [length - 1]}, patch=follow
        )
        read = drive(bundled, _logits(bundled, [whole, frozen], last))
        divergences.append(float(kl_divergence(read[0], read[1])[0]))
        differ += int(read[0].argmax()) != int(read[1].argmax())
    assert divergences[0] <= EXACT
    assert max(divergences[1:]) > 1e-2
    assert differ > 0


def _logits(model: Model, runs: Sequence[Run], site: Site) -> Any:
    received = yield runs
    return fetch([model.logits(read[site]) for read in received])


@pytest.mark.slow
def test_recomputed_patches_are_exact_in_every_family(variant: Subject) -> None:
    """Every variant of a family agrees with its run with context in float32."""
    model = variant.model
    context, prompt = list(variant.ids(range(3, 12))), list(variant.ids(range(12, 15)))
    for recompute in ("all", "new"):
        for seed, temperature in ((0, 0.0), (1, 1.0)):
            answer = complete(
                model,
                prompt=prompt,
                patch={"context": context, "recompute": recompute},
                agreement=True,
                max_tokens=6,
                seed=seed,
                temperature=temperature,
            )
            assert answer.agreement
            assert max(one.kl for one in answer.agreement) <= 1e-9
            assert all(one.same_token for one in answer.agreement)


def test_captured_activations_are_those_of_the_rows_that_gave_the_tokens(tiny: Model) -> None:
    """Each captured row is that of the whole text in one run, and a norm is that of the row."""
    capture: dict[str, Any] = {"layers": [0, -1], "hook_points": ["mlp_act", "resid_post"]}
    options: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}
    answer = complete(tiny, **options, capture=capture)
    text = [5, 6, 7, *(answer.tokens or ())][:-1]
    request = ActivationsRequest(prompts=[text], positions=[2, 3, 4, 5], **capture)
    expected = drive(tiny, plan_activations(tiny, request)).prompts[0].activations
    norms = complete(tiny, **options, capture={**capture, "reduce": "norm"})
    assert answer.activations
    assert norms.activations
    for one, norm, other in zip(answer.activations, norms.activations, expected, strict=True):
        assert (one.layer, one.hook_point) == (other.layer, other.hook_point)
        agree(one.values, other.values, 5e-6)
        agree(norm.values, torch.linalg.vector_norm(other.values.double(), dim=-1), 5e-6)


def update_of(model: Model, size: float) -> dict[int, StaticUpdate]:
    """A random update of rank 2 of both weights of the last two layers."""
    dice = torch.Generator().manual_seed(3)

    def factors(d_in: int, d_out: int) -> LowRank:
        a, b = (torch.randn(2, width, generator=dice) for width in (d_in, d_out))
        return LowRank(size * a, b)

    return {
        layer: StaticUpdate(
            factors(model.d_model, model.blocks[layer].w_in.width),
            factors(model.d_mlp, model.d_model),
            torch.randn(model.d_model, generator=dice),
        )
        for layer in (model.n_layers - 2, model.n_layers - 1)
    }


def test_adapter_changes_the_weights_by_its_scale(tiny: Model) -> None:
    """An adapter's completion is that of the weights plus scale · ΔW, at scales 1 and 0.5, and at 0
    that of the resident weights."""
    used = adapter(update_of(tiny, 0.1))
    options: dict[str, Any] = {"prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0}
    plain = complete(tiny, **options, logprobs=2)
    found = {}
    for scale in (0.0, 0.5, 1.0):
        patch = {"adapter": used.id, "scale": scale}
        found[scale] = complete(tiny, used, **options, patch=patch, logprobs=2)
    assert found[0.0].tokens == plain.tokens
    assert found[0.0].choices[0].logprobs
    assert plain.choices[0].logprobs
    assert found[0.0].choices[0].logprobs.token_logprobs == pytest.approx(
        plain.choices[0].logprobs.token_logprobs, abs=1e-5
    )
    assert found[1.0].one_set_of_weights is True
    assert complete(tiny, used, **options, model=used.id).tokens == found[1.0].tokens
    half = adapter({layer: one.scaled(0.5) for layer, one in used.updates.items()})
    assert complete(tiny, half, **options, model=half.id).tokens == found[0.5].tokens
    assert found[1.0].choices[0].logprobs
    assert found[1.0].choices[0].logprobs.token_logprobs != pytest.approx(
        plain.choices[0].logprobs.token_logprobs, abs=1e-2
    )
    assert plain.one_set_of_weights is UNSET


def test_adapter_that_acts_on_no_row_is_an_error(tiny: Model) -> None:
    """An adapter without updates, or of layers that the model lacks, is refused, not ignored."""
    for updates in ({}, {0: StaticUpdate()}, {tiny.n_layers: StaticUpdate(bias=torch.ones(32))}):
        with pytest.raises(NoRowsPatched):
            complete(tiny, adapter(updates), prompt=[5], model="a" * 32)


def test_adapter_lays_the_prompt_where_it_was_made_for(tiny: Model) -> None:
    """With its context, the prompt has its positions behind the context; without, it begins at
    position 0, behind the anchor for `anchored`. A baseline of another context needs it."""
    used = update_of(tiny, 0.1)

    def positions(baseline: Any, **options: Any) -> list[tuple[int, ...]]:
        body = CompletionRequest(prompt=[5, 6], **options)
        made = plan_completion(tiny, body, adapter(used, baseline))
        return [tuple(run.positions) for run in made.runs]

    given = {"patch": {"adapter": "a" * 32, "context": [7, 8, 9]}}
    assert positions("matched", model="a" * 32) == [(0, 1)]
    assert positions("anchored", model="a" * 32) == [(0, 1, 2)]
    assert positions("matched", **given) == [(3, 4)]
    assert positions("anchored", **given) == [(0, 4, 5)]
    assert positions("matched", **given, agreement=True) == [(3, 4), (0, 1, 2, 3, 4)]
    other = adapter(used, AnotherContext(context="b"))
    assert refusal(tiny, other, prompt=[5], model="a" * 32).at == ("model",)


def test_events_of_a_stream_add_up_to_the_answer(bundled: Model) -> None:
    """Texts, tokens, log-probabilities, agreement and activations of the events are those of the
    answer; what belongs to the whole is in the first event."""
    options: dict[str, Any] = {
        "prompt": PROMPT,
        "patch": {"context": CONTEXT, "recompute": "new"},
        "agreement": True,
        "capture": {"layers": [-1]},
        "logprobs": 1,
        "max_tokens": 5,
        "seed": 3,
    }
    whole, events = complete(bundled, **options), events_of(bundled, **options)
    assert len(events) == 5
    assert "".join(event.choices[0].text for event in events) == whole.choices[0].text
    assert [token for event in events for token in event.tokens or ()] == whole.tokens
    assert whole.agreement == [one for event in events for one in event.agreement or ()]
    scores = whole.choices[0].logprobs
    assert scores is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        parts = [getattr(event.choices[0].logprobs, name) for event in events]
        assert [one for part in parts for one in part] == getattr(scores, name)
    assert whole.activations
    rows = torch.cat([event.activations[0].values for event in events if event.activations])
    assert torch.equal(rows, whole.activations[0].values)
    assert [event.choices[0].finish_reason for event in events] == [None] * 4 + ["length"]
    assert events[0].seed == whole.seed == 3
    assert events[0].resident_model == bundled.summary
    assert {event.seed for event in events[1:]} == {UNSET}
    assert len({event.id for event in events}) == 1


def test_seed_repeats_a_completion(bundled: Model) -> None:
    """The same seed gives the same tokens; the seed of the answer repeats it; others differ."""
    first = complete(bundled, prompt=PROMPT, max_tokens=12)
    assert first.seed is not UNSET
    assert first.seed < 2**53
    again = complete(bundled, prompt=PROMPT, max_tokens=12, seed=first.seed)
    assert again.tokens == first.tokens
    assert complete(bundled, prompt=PROMPT, max_tokens=12, seed=first.seed + 1).tokens != (
        first.tokens
    )


def test_end_token_ends_a_completion(bundled: Model) -> None:
    """An end token ends the completion with `stop`. It is among the tokens, and not in the text."""
    assert bundled.end_tokens == {0}
    options: dict[str, Any] = {"prompt": CONTEXT + PROMPT, "max_tokens": 12, "temperature": 0}
    tokens = complete(bundled, **options).tokens or ()
    end = tokens[3]
    count = tokens.index(end) + 1
    answer = complete(replace(bundled, end_tokens=frozenset({0, end})), **options, logprobs=0)
    assert answer.tokens == tokens[:count]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].text == bundled.tokenizer.text(tokens[: count - 1])
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens) == count
    assert answer.usage
    assert answer.usage.completion_tokens == count


def test_stop_text_ends_a_completion_across_tokens(bundled: Model) -> None:
    """The text ends before the first stop text, even if it spans tokens, and so do the events."""
    options: dict[str, Any] = {"prompt": CONTEXT + PROMPT, "max_tokens": 12, "temperature": 0}
    text = complete(bundled, **options).choices[0].text
    for stop in (text[12:19], text[3], [text[20:22], text[9:14]]):
        stops = [stop] if isinstance(stop, str) else stop
        expected = text[: min(text.index(one) for one in stops)]
        answer = complete(bundled, **options, stop=stop)
        assert answer.choices[0].text == expected
        assert answer.choices[0].finish_reason == "stop"
        assert len(answer.tokens or ()) < 12
        events = events_of(bundled, **options, stop=stop)
        assert "".join(event.choices[0].text for event in events) == expected
        assert events[-1].choices[0].finish_reason == "stop"
    assert complete(bundled, **options, stop="never said").choices[0].text == text


REFUSED: list[tuple[dict[str, Any], str, tuple[str | int, ...]]] = [
    ({"n": 2}, "NotSupported", ("n",)),
    ({"best_of": 3}, "NotSupported", ("best_of",)),
    ({"presence_penalty": 0.5}, "NotSupported", ("presence_penalty",)),
    ({"frequency_penalty": -1.0}, "NotSupported", ("frequency_penalty",)),
    ({"logit_bias": {"5": 1.0}}, "NotSupported", ("logit_bias",)),
    ({"suffix": "b"}, "NotSupported", ("suffix",)),
    ({"stream_options": {"include_usage": True}}, "NotSupported", ("stream_options",)),
    ({"agreement": True}, "NotSupported", ("agreement",)),
    ({"prompt": []}, "EmptyQuery", ("prompt",)),
    ({"prompt": [5, 999_999]}, "TokenOutOfRange", ("prompt", 1)),
    ({"prompt": [5] * 65}, "PromptTooLong", ("prompt",)),
    ({"prompt": [5] * 60}, "PromptTooLong", ("prompt",)),
    ({"max_tokens": 62}, "PromptTooLong", ("max_tokens",)),
    ({"patch": {"context": []}}, "EmptyContext", ("patch", "context")),
    ({"patch": {"context": [1, 2, -1]}}, "TokenOutOfRange", ("patch", "context", 2)),
    ({"patch": {"context": [5] * 60}}, "PromptTooLong", ("prompt",)),
    (
        {"patch": {"context": [5, 6], "baseline": {"without": [(0, 3)]}}},
        "BadSpan",
        ("patch", "baseline", "without", 0),
    ),
    ({"patch": {"context": [5]}, "echo": True, "logprobs": 1}, "NotSupported", ("echo",)),
    ({"capture": {"layers": [9]}}, "LayerOutOfRange", ("capture", "layers", 0)),
    ({"capture": {"layers": []}}, "Invalid", ("capture", "layers")),
    ({"capture": {"hook_points": []}}, "Invalid", ("capture", "hook_points")),
    (
        {"capture": {"hook_points": ["mlp_pre_linear"]}},
        "UnknownHookPoint",
        ("capture", "hook_points", 0),
    ),
]


@pytest.mark.parametrize(("options", "error", "at"), REFUSED)
def test_requests_that_cannot_be_answered_are_refused_before_any_work(
    tiny: Model, options: dict[str, Any], error: str, at: tuple[str | int, ...]
) -> None:
    """The error names the field."""
    found = refusal(tiny, **{"prompt": [5, 6, 7], **options})
    assert (type(found).__name__, found.at) == (error, at)


def test_values_that_change_nothing_are_accepted(tiny: Model) -> None:
    """Defaults of OpenAI's clients are not refused."""
    options = {"n": 1, "best_of": 1, "presence_penalty": 0.0, "logit_bias": {}, "user": "me"}
    assert complete(tiny, prompt=[5], max_tokens=2, **options).tokens


def test_recomputing_all_has_a_limit_of_tokens(bundled: Model) -> None:
    """`all` runs the text again for each token, so it takes 64 tokens at most; `new` takes more."""
    found = refusal(bundled, prompt=PROMPT, patch={"context": CONTEXT}, max_tokens=65)
    assert (found.at, found.limit, found.actual) == (("max_tokens",), 64, 65)
    patch = RecomputedPatch(context=CONTEXT, recompute="new")
    body = CompletionRequest(prompt=PROMPT, patch=patch, max_tokens=65)
    assert plan_completion(bundled, body).runs


@pytest.mark.parametrize("agreement", [True, False])
@pytest.mark.parametrize("recompute", [None, "new", "all"])
def test_plan_announces_the_rows_and_the_forwards_of_all_tokens(
    tiny: Model, recompute: Recompute | None, agreement: bool
) -> None:
    """A token is one forward of the new rows alone; `all` computes the text again. The cost counts
    each forward, so that the expected wait of other requests is right."""
    body = CompletionRequest(
        prompt=[5, 6, 7],
        max_tokens=6,
        seed=1,
        patch=recompute and RecomputedPatch(context=[8, 9], recompute=recompute),
        agreement=agreement and recompute is not None,
    )
    made = plan_completion(tiny, body)
    tree = Prefixes(dtype=tiny.dtype)
    packs: list[Sequence[Run]] = []

    def compute(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
        packs.append(runs)
        return forward(model, runs, prefixes=tree)

    assert len(drive(tiny, made, compute).tokens or ()) == 6
    assert made.work.forwards == len(packs) == 6
    assert made.work.rows == tree.misses
    assert made.work.cost > 6 * SMALL_PACK * made.work.layers * 4


def test_completions_at_once_share_packs_and_have_their_own_tokens(bundled: Model) -> None:
    """Plain and patched completions of different lengths, asked together, have the tokens that
    they have alone, in as many forwards as the longest one has tokens."""
    patch = RecomputedPatch(context=CONTEXT, recompute="new")
    bodies = [
        CompletionRequest(prompt=PROMPT, max_tokens=9, temperature=0),
        CompletionRequest(prompt=PROMPT, max_tokens=5, seed=1),
        CompletionRequest(prompt="The", max_tokens=7, patch=patch, agreement=True, seed=2),
        CompletionRequest(prompt=PROMPT, max_tokens=12, patch=patch, temperature=0),
    ]
    alone = [drive(bundled, plan_completion(bundled, body)).tokens for body in bodies]
    together = joined(bundled, [plan_completion(bundled, body) for body in bodies])
    tree = Prefixes(dtype=bundled.dtype)
    packs: list[Sequence[Run]] = []

    def compute(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
        packs.append(runs)
        return forward(model, runs, prefixes=tree)

    assert [one.tokens for one in drive(bundled, together, compute)] == alone
    assert len(packs) == together.work.forwards == 12


def test_prompt_is_cached_for_the_next_completion(tiny: Model) -> None:
    """A second completion of a prompt computes the prompt's last row and the new tokens alone, and
    what was generated is not cached."""
    tree = Prefixes(1 << 20, tiny.dtype)

    def compute(model: Model, runs: Sequence[Run]) -> Sequence[Activations]:
        return forward(model, runs, prefixes=tree)

    body = CompletionRequest(prompt=[5, 6, 7, 8, 9], max_tokens=4, seed=1)
    computed = []
    for _ in range(2):
        before = tree.misses
        made = plan_completion(tiny, body)
        drive(tiny, made, compute)
        tree.forget({history for run in made.runs for history in run.histories})
        computed.append(tree.misses - before)
    assert computed == [5 + 3, 1 + 3]
