/** Requests to the service, its problems, and the same request as a curl command. */

import { key } from "./keys.js";

/** A problem from the service, from a proxy, or from the network. */
export class Problem extends Error {
  /**
   * @param {{title: string, detail: string, code: string, status?: number, errors?: Array<{pointer: string, message: string}>,
   *   request_id?: string, retryable?: boolean}} said RFC 9457, as the service sends it
   * @param {number} [after] seconds to wait before a retry, from `Retry-After`
   */
  constructor(said, after = 0) {
    super(`${said.title}: ${said.detail}`);
    this.said = said;
    this.after = after;
  }
}

/**
 * The address of a resource, relative to the page, so that a prefix in front of the service is kept.
 * @param {string} path such as `v1/model`
 */
export function address(path) {
  return new URL(path, document.baseURI.split("#")[0]).href;
}

/**
 * @param {Response} response with an error status
 * @returns {Promise<Problem>}
 */
async function problemOf(response) {
  const after = Number(response.headers.get("Retry-After")) || 0;
  if (response.headers.get("Content-Type")?.startsWith("application/problem+json")) {
    return new Problem(await response.json(), after);
  }
  const title = `${response.status} ${response.statusText}`.trim();
  return new Problem(
    {
      title,
      detail: "The answer did not come from the service.",
      code: "foreign",
      status: response.status,
    },
    after,
  );
}

/**
 * Wait, unless the signal aborts.
 * @param {number} seconds
 * @param {AbortSignal} [signal]
 */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/**
 * Send a request with the key. While the service is loading its model, retry after the time that it names.
 * @param {string} path such as `v1/model`
 * @param {RequestInit & {headers?: object}} [request]
 * @param {(problem: Problem) => void} [waiting] called each time the model is still loading
 * @returns {Promise<Response>}
 * @throws {Problem}
 */
export async function call(path, request = {}, waiting = () => {}) {
  const { signal } = request;
  for (;;) {
    const headers = { ...request.headers, ...(key() && { Authorization: `Bearer ${key()}` }) };
    let response;
    try {
      response = await fetch(address(path), { ...request, headers, cache: "no-store" });
    } catch (error) {
      if (signal?.aborted) throw error;
      throw new Problem({
        title: "No answer",
        detail: "The service cannot be reached.",
        code: "unreachable",
        retryable: true,
      });
    }
    if (response.ok) return response;
    const problem = await problemOf(response);
    if (problem.said.code !== "loading") throw problem;
    waiting(problem);
    await pause(Math.min(problem.after || 1, 5), signal);
  }
}

/**
 * Send JSON and read JSON.
 * @param {string} path such as `v1/model`
 * @param {object | null} [body] of a POST; null is a GET
 * @param {AbortSignal} [signal]
 * @param {(problem: Problem) => void} [waiting] called each time the model is still loading
 * @returns {Promise<any>}
 * @throws {Problem}
 */
export async function ask(path, body = null, signal, waiting) {
  const headers = { "Content-Type": "application/json" };
  const post = { method: "POST", body: JSON.stringify(body), headers };
  return (await call(path, { ...(body && post), signal }, waiting)).json();
}

/**
 * The curl command of a request. It names the environment variable of the key, never the key.
 * @param {string} path
 * @param {object | null} body of a POST; null is a GET
 * @returns {string}
 */
export function curl(path, body) {
  const authorization = key() ? ' \\\n  -H "Authorization: Bearer $DELTAW_API_KEY"' : "";
  const quoted = JSON.stringify(body, null, 2).replaceAll("'", String.raw`'\''`);
  const post = body ? ` \\\n  -H 'Content-Type: application/json' -d '${quoted}'` : "";
  return `curl -s ${address(path)}${authorization}${post}`;
}
