// The service: requests with a key, arrays as .npy, patience while it is busy.

import { Problem, byId, pause, say, unsay } from "./dom.js";
import * as npy from "./npy.js";

const TRIES = 6; // of a request that a busy service refuses
const LONGEST_WAIT = 60; // seconds between two
const GONE = "The service does not answer. It may have stopped, or the network is down.";
const FOREIGN = "What answers is not the service: something between may have answered in its place.";

/** An answer that is none, and its status; 0: no answer of the service at all. */
export class ServiceError extends Problem {
  constructor(message, status) {
    super(message);
    Object.assign(this, { status, passing: status === 0 || status >= 429 });
  }
}

/** The key that requests carry, kept as long as the tab is open. */
export const key = {
  get: () => sessionStorage.getItem("glow-key") ?? "",
  set: (value) => sessionStorage.setItem("glow-key", value),
};

/**
 * Ask the service and return its Response. `json` or `array`, {shape, data}, is what is posted.
 * A busy service is asked again after the time that it names. Throws ServiceError.
 */
async function ask(path, { query = {}, json, array, signal } = {}) {
  const headers = {};
  if (key.get()) headers["x-api-key"] = key.get();
  if (json) headers["content-type"] = "application/json";
  if (array) headers["content-type"] = "application/x-npy";
  const method = json || array ? "POST" : "GET";
  const body = json ? JSON.stringify(json) : array && npy.write(array);
  const search = new URLSearchParams(query).toString();
  const waiting = {}; // the owner of what is said meanwhile
  try {
    for (let attempt = 1; ; attempt++) {
      const response = await received(fetch(search ? `${path}?${search}` : path, { method, headers, body, signal }), signal);
      if (response.ok) return response;
      const { status } = response;
      const { error = `The service answers ${status} ${response.statusText}`.trim(), code, request_id: id } =
        await response.json().catch(() => ({}));
      if ((status !== 429 && status !== 503) || attempt === TRIES) {
        if (status === 401 || status === 403) byId("key-form").hidden = false;
        throw new ServiceError(status >= 500 && id ? `${error} (${code}, request ${id})` : error, status);
      }
      const wait = Math.min(Number(response.headers.get("retry-after")) || 1, LONGEST_WAIT);
      const why = status === 429 ? "busy" : "not ready";
      say(`The service is ${why}: ${error.replace(/^the service /, "it ")}. Asking again in ${wait} s.`, waiting);
      await pause(wait, signal);
    }
  } finally {
    unsay(waiting);
  }
}

/** What a step of a request gives. Throws ServiceError where the connection broke, or what came was not the service's. */
async function received(step, signal) {
  try {
    return await step;
  } catch (error) {
    throw signal?.aborted ? error : new ServiceError(error instanceof SyntaxError ? FOREIGN : GONE, 0);
  }
}

/** As ask, for an answer in JSON. */
export async function askJson(path, options) {
  return received((await ask(path, options)).json(), options?.signal);
}

/** As ask, for an answer that is one array: {shape, data}. */
export async function askArray(path, { query, ...options }) {
  const response = await ask(path, { query: { ...query, format: "npy" }, ...options });
  return received(response.arrayBuffer().then(npy.read), options.signal);
}
