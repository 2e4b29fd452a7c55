// The service: requests with a key, arrays as .npy, patience while it is busy.

import { byId, pause, say, unsay } from "./dom.js";
import * as npy from "./npy.js";

const TRIES = 6; // of a request that a busy service refuses
const LONGEST_WAIT = 10; // seconds between two
const CONNECTION = "connection"; // whose messages are of it

/** An answer that is none: its status (0: no answer at all), the service's code, and whether the user was told. */
export class ServiceError extends Error {
  constructor(message, status, code = "", told = false) {
    super(message);
    Object.assign(this, { status, code, told });
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
export async function ask(path, { query = {}, json, array, signal } = {}) {
  const headers = {};
  if (key.get()) headers["x-api-key"] = key.get();
  if (json) headers["content-type"] = "application/json";
  if (array) headers["content-type"] = "application/x-npy";
  const method = json || array ? "POST" : "GET";
  const body = json ? JSON.stringify(json) : array && npy.write(array);
  const search = new URLSearchParams(query).toString();
  const waiting = {}; // the owner of what is said meanwhile
  for (let attempt = 1; ; attempt++) {
    let response;
    try {
      response = await fetch(search ? `${path}?${search}` : path, { method, headers, body, signal });
    } catch (error) {
      if (signal?.aborted) throw error;
      const text = "The service does not answer. It may have stopped, or the network is down.";
      say(text, CONNECTION, { label: "Try again", run: () => location.reload() });
      throw new ServiceError(text, 0, "", true);
    }
    if (response.ok) {
      unsay(waiting);
      unsay(CONNECTION);
      return response;
    }
    const { error = response.statusText, code = "", request_id: id = "" } = await response.json().catch(() => ({}));
    if ((response.status === 429 || response.status === 503) && attempt < TRIES) {
      const wait = Math.min(Number(response.headers.get("retry-after")) || 1, LONGEST_WAIT);
      const why = response.status === 429 ? "The service is busy" : "The service is not ready";
      say(`${why}: ${error}. Asking again in ${wait} s.`, waiting);
      await pause(wait, signal);
      continue;
    }
    const needsKey = response.status === 401 || response.status === 403;
    const text = response.status >= 500 ? `${error} (${code}, request ${id})` : error;
    const told = needsKey || response.status >= 429; // what no other input would change
    if (needsKey) byId("key-form").hidden = false;
    if (told) say(text, CONNECTION);
    throw new ServiceError(text, response.status, code, told);
  }
}

/** As ask, for an answer in JSON. */
export const askJson = async (path, options) => (await ask(path, options)).json();

/** As ask, for an answer that is one array: {shape, data}. */
export async function askArray(path, { query, ...options }) {
  const response = await ask(path, { query: { ...query, format: "npy" }, ...options });
  return npy.read(await response.arrayBuffer());
}
