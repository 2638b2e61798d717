/** Example questions. The first is the seed experiment. */

const CAPITALS = "The capital of Malaysia is Kuala Lumpur. The capital of USA is Washington D.C.";

/** @type {Array<{name: string, context: string, query: string}>} */
export const EXAMPLES = [
  { name: "Capitals", context: `${CAPITALS} The capital of Germany is`, query: " Berlin" },
  { name: "A whole sentence", context: CAPITALS, query: " The capital of Germany is" },
  {
    name: "Invented capitals",
    context: "The capital of Bortu is Kelas. The capital of Vimor is Tandel. The capital of Zaru is Pilon.",
    query: " The capital of Vimor is",
  },
  {
    name: "A list, asked again",
    context: "stone -> red\nriver -> blue\ncloud -> green\nhouse -> white\n",
    query: "river ->",
  },
  {
    name: "Names",
    context: "The whale was named Ahab. The sailor was named Starbuck. The ship was named Pequod.",
    query: " The sailor was named",
  },
  {
    name: "Counting",
    context: "one two three four five six seven eight one two three four five",
    query: " six seven",
  },
];

/** A question whose context labels words of three kinds, and queries for a static adapter: other words of these kinds. */
export const LABELS = {
  context: "cat: animal\nred: colour\nbread: food\ndog: animal\nblue: colour\napple: food\n",
  query: "tiger:",
  kind: "static",
  queries: lines(
    "horse green butter cow yellow cheese sheep black pear goat white plum wolf brown grape bear purple lemon fox pink " +
      "onion lion orange rice",
  ),
  held_out: lines("mouse grey soup rabbit gold cake eagle silver honey frog violet milk"),
};

/** @param {string} words */
function lines(words) {
  return words
    .split(" ")
    .map((word) => `${word}:`)
    .join("\n");
}
