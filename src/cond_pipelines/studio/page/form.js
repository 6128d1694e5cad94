// Fields of a configuration, as the server describes them: {name, help, type, choices, default}.

import { Choice, Field, NumberField, TextField, html } from "./parts.js";

const shown = (value) => ((value ?? null) === null ? "" : Array.isArray(value) ? value.join(" ") : String(value));

/**
 * One field. value: what was chosen, undefined where nothing was. decided: what it would be then.
 * onValue(undefined) takes the choice back.
 */
function Control({ field, value, decided, onValue, options }) {
  const { name, help, type } = field;
  const instead = shown(decided ?? field.default);
  const set = (given) => onValue((given ?? "") === "" ? undefined : given);
  if (options) {
    return html`<${Choice} label=${name} help=${help} value=${value ?? ""} options=${[["", "none"], ...options]}
      onValue=${(given) => onValue(given || null)} />`; // null: none, also where there is a default
  }
  if (type === "bool") {
    return html`<${Field} label=${name} help=${help}>
      ${(tied) =>
        html`<input type="checkbox" checked=${value ?? decided ?? field.default ?? false}
          onChange=${(e) => onValue(e.target.checked)} ...${tied} />`}
    <//>`;
  }
  if (type === "choice") {
    const choices = [["", instead ? `${instead} (default)` : "default"], ...field.choices];
    return html`<${Choice} label=${name} help=${help} value=${value ?? ""} options=${choices} onValue=${set} />`;
  }
  if (type === "int" || type === "float") {
    const step = type === "int" ? 1 : "any";
    return html`<${NumberField} label=${name} help=${help} value=${value} step=${step} placeholder=${instead} onValue=${set} />`;
  }
  const isList = type === "list";
  const read = (text) => set(isList ? text.split("\n").filter((line) => line.trim()) : text);
  if (!isList) {
    return html`<${TextField} label=${name} help=${help} value=${value} placeholder=${instead} onValue=${read} />`;
  }
  return html`<${Field} label=${name} help=${`${help} One a line.`}>
    ${(tied) => html`<textarea rows="2" placeholder=${instead} onChange=${(e) => read(e.target.value)} ...${tied}>
${(value ?? []).join("\n")}</textarea>`}
  <//>`;
}

/** All fields of a group. values: {name: chosen}; options: {name: [[value, text], ...]} of those that have a list. */
export function Fields({ fields, values, decided = {}, options = {}, onValues }) {
  const setOne = (name) => (value) => {
    const { [name]: _, ...others } = values;
    onValues(value === undefined ? others : { ...others, [name]: value });
  };
  return html`<div class="fields">
    ${fields.map(
      (field) => html`<${Control} key=${field.name} field=${field} value=${values[field.name]}
        decided=${decided[field.name]} options=${options[field.name]} onValue=${setOne(field.name)} />`,
    )}
  </div>`;
}

/** The first group in sight, each other one in a part that opens; a filter by name and help. */
export function Groups({ groups, values, decided, options, onValues, filter, onFilter }) {
  const isOf = ({ name, help }) => `${name} ${help}`.toLowerCase().includes(filter.toLowerCase());
  const all = { values, decided, options, onValues };
  const [first, ...others] = groups;
  const hits = groups.flatMap(({ fields }) => fields).filter(isOf);
  return html`<${TextField} label="Look for a setting" value=${filter} onValue=${onFilter} type="search" />
    ${filter
      ? html`<${Fields} fields=${hits} ...${all} />`
      : html`<${Fields} fields=${first.fields} ...${all} />
          ${others.map(
            ({ title, fields }) => html`<details key=${title}>
              <summary>${title}${numberOf(fields, values)}</summary>
              <${Fields} fields=${fields} ...${all} />
            </details>`,
          )}`}`;
}

function numberOf(fields, values) {
  const count = fields.filter(({ name }) => name in values).length;
  return count ? html` <small>${count} chosen</small>` : "";
}
