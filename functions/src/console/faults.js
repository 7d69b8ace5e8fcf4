// Takes the API's message apart: which part belongs to which field of the form. No part is ever lost.

/**
 * `cronExpr: …; name: …` as `{ fields: { cronExpr: ["…"], name: ["…"] }, rest: [] }`. What names no field of the form is the rest. A message may
 * itself have `; ` in it, so only a field's name behind it begins a new part.
 */
export function faultsOf(message, names) {
  const begins = new RegExp(`(?:^|; )(${names.join("|")}): `, "g");
  const fields = {};
  const rest = [];
  const found = [...message.matchAll(begins)];
  const before = message.slice(0, found[0]?.index ?? message.length).trim();
  if (before) rest.push(before);
  found.forEach((match, index) => {
    const text = message.slice(match.index + match[0].length, found[index + 1]?.index ?? message.length).trim();
    (fields[match[1]] ??= []).push(text || message);
  });
  if (rest.length === 0 && found.length === 0) rest.push(message || "?");
  return { fields, rest };
}
