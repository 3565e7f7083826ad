// What a reason means, and its colour: blue the model, warm what wants attention, grey heuristics.

export const REASONS = [
  ["learned", "blue", "the model"],
  ["out_of_range", "violet", "its physical part"],
  ["explore", "green", "exploration"],
  ["guard", "sky", "the heuristic: gain within the margin"],
  ["only_one", "pale", "one candidate"],
  ["heuristic", "grey", "the heuristic"],
  ["shadow", "grey", "the heuristic: shadow"],
  ["control", "pale", "the heuristic: its share"],
  ["cold", "pale", "the heuristic: no model yet"],
  ["demoted", "orange", "the heuristic: model taken off"],
  ["absurd", "red", "the heuristic: absurd prediction"],
  ["error", "red", "an error"],
];
export const colourOf = Object.fromEntries(REASONS.map(([name, colour]) => [name, colour]));
const MODEL = new Set(["learned", "out_of_range", "guard", "explore"]);
export const byModel = (reason) => MODEL.has(reason);
