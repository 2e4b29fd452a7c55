// What the service says of one input, in words, figures and a histogram.

import { histogram } from "./charts.js";
import { byId, number, percent, showFacts } from "./dom.js";

/** Show row 0 of an answer of /log-likelihood in the elements `${prefix}-verdict`, `-figures` and `-histogram`. */
export function showResult(prefix, answer, { calibration }, what) {
  const verdict = byId(`${prefix}-verdict`);
  const chart = byId(`${prefix}-histogram`);
  const facts = [["Log-likelihood", `${number(answer.log_likelihood[0])} nats`], ["Bits per dimension", number(answer.bits_per_dim[0])]];
  chart.parentElement.hidden = !calibration;
  if (calibration) {
    const [p, flagged, score] = [answer.p_value[0], answer.is_anomaly[0], answer.score[0]];
    verdict.className = `verdict ${flagged ? "anomaly" : "normal"}`;
    verdict.textContent = flagged
      ? `Anomaly: only ${percent(p)} of normal ${what}s score at least as high, and alpha is ${percent(answer.alpha)}`
      : `Normal: ${percent(p)} of normal ${what}s score at least as high`;
    facts.push([`Score (${calibration.score.replaceAll("_", " ")})`, number(score)], ["p-value", number(p)]);
    histogram(chart, calibration, score, `this ${what}`);
  } else {
    verdict.className = "verdict";
    verdict.textContent = "Not calibrated: there is no p-value";
  }
  showFacts(byId(`${prefix}-figures`), facts);
}
