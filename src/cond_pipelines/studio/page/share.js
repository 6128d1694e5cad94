// View 6: the card as it will look, what goes to the Hub and what stays, push, and the export.

import { marked } from "./vendor/marked.js";
import { Act, Check, Choice, Empty, Jobs, PathChoice, Problem, Table, TextField, Waiting } from "./parts.js";
import { api, bytes, fileUrl, goTo, html, linkTo, notify, query, useAnswer, useEffect, useKept, useState, useStudio } from "./parts.js";

const EXPORTS = { web: "a page that draws in a browser", "stable-diffusion": "a Stable Diffusion folder", ddpm: "a DDPM folder", onnx: "ONNX files" };

export function usableModels(studio) {
  const runs = studio.runs.filter((run) => run.has_model);
  const known = new Set(runs.map(({ path }) => path));
  return [...runs, ...studio.models.filter(({ path }) => !known.has(path))];
}

/** The text, once it has not changed for a moment. */
function useSettled(text) {
  const [settled, setSettled] = useState(text);
  useEffect(() => {
    const timer = setTimeout(setSettled, 400, text);
    return () => clearTimeout(timer);
  }, [text]);
  return settled;
}

export default function Share({ here }) {
  const models = usableModels(useStudio());
  const model = models.find(({ path }) => path === here.paths[0]) ?? models[0];
  if (!model) return html`<${Empty}>No finished model yet. <a href=${linkTo("run", { new: 1 })}>Start a run</a><//>`;
  return html`<${Sharing} key=${model.path} models=${models} model=${model} />`;
}

function Sharing({ models, model }) {
  const { path } = model;
  const [repo, setRepo] = useKept(`repo ${path}`, model.name.replace(/[^\w.-]+/g, "-"));
  const [isPrivate, setPrivate] = useKept("private", true);
  const [web, setWeb] = useState(false);
  const [images, setImages] = useState(false);
  const [to, setTo] = useState("web");
  const repoId = useSettled(repo);
  const [shared, error] = useAnswer(`share?${query({ path, repo_id: repoId })}`);
  const push = async () => {
    await api("push", { path, repo_id: repo, private: isPrivate, web, include_training_images: images });
    notify("The upload has started.");
  };
  const exported = async () => notify(`The export goes to ${(await api("export", { path, to })).path}`);
  return html`<div class="split">
    <div>
      <section class="card" aria-label="Push">
        <${PathChoice} label="Model" items=${models} value=${path} onValue=${(next) => goTo("share", { path: next })} />
        <${TextField} label="Repository on the Hub" value=${repo} onValue=${setRepo} help="NAME, or OWNER/NAME." />
        <fieldset>
          <${Check} label="private" value=${isPrivate} onValue=${setPrivate} />
          <${Check} label="with a page that draws (a static Space)" value=${web} onValue=${setWeb} />
          <${Check} label="with pictures that show training images" value=${images} onValue=${setImages} />
        </fieldset>
        <${Problem} error=${shared?.problem} />
        <${Act} run=${push} isMain isOff=${!repo.trim()}>Push<//>
      </section>
      <section class="card" aria-label="Export">
        <${Choice} label="Export" value=${to} options=${Object.entries(EXPORTS)} onValue=${setTo} help="It then works without this package." />
        <${Act} run=${exported}>Export<//>
      </section>
      <${Jobs} kinds=${["push", "export"]} path=${path} />
    </div>
    <div>
      <${Problem} error=${error} />
      ${!shared && !error && html`<${Waiting}>Writing the card<//>`}
      ${shared && html`<${Card} text=${shared.card} folder=${path}
        names=${shared.files.map(({ name }) => name)} /><${Files} shared=${shared} />`}
    </div>
  </div>`;
}

function Files({ shared }) {
  const sum = shared.files.reduce((all, file) => all + file.bytes, 0);
  return html`<section class="card">
    <h2>What is uploaded <small>${shared.files.length} files, ${bytes(sum)}</small></h2>
    <${Table} label="Files that are uploaded" head=${["file", "size"]} rows=${shared.files.map((file) => [file.name, bytes(file.bytes)])} />
    ${shared.stays.length > 0 && html`<h2>What stays here</h2><ul class="names">${shared.stays.map((name) => html`<li>${name}</li>`)}</ul>`}
  </section>`;
}

// ---------------------------------------------------------------------------------------- the card as it will look
/** marked reads the card; elements are made here, so that nothing in it is HTML of ours. */
function Card({ text, folder, names }) {
  const [, front, body] = /^---\n(.*?)\n---\n(.*)$/s.exec(text) ?? [null, "", text];
  return html`<article class="card prose" aria-label="The model card">
    ${blocks(marked.lexer(body.replace("<Gallery />", galleryOf(names))), folder)}
    ${front && html`<details><summary>What the Hub reads</summary><pre tabindex="0" aria-label="What the Hub reads">${front}</pre></details>`}
  </article>`;
}

/** The Hub shows the pictures of images/ where the card says <Gallery />. */
const galleryOf = (names) => names.filter((name) => /^images\/\d+\.png$/.test(name)).map((name) => `![a sample](${name})`).join(" ");

const blocks = (tokens, folder) => tokens.map((token) => block(token, folder));

function block(token, folder) {
  const inside = (tokens = token.tokens) => inline(tokens ?? [], folder);
  if (token.type === "heading") return html`<${`h${Math.min(6, token.depth + 1)}`}>${inside()}<//>`;
  if (token.type === "paragraph") return html`<p>${inside()}</p>`;
  if (token.type === "text") return html`<span>${token.tokens ? inside() : token.text}</span>`;
  if (token.type === "code") return html`<pre tabindex="0" aria-label="Code">${token.text}</pre>`;
  if (token.type === "blockquote") return html`<blockquote>${blocks(token.tokens, folder)}</blockquote>`;
  if (token.type === "hr") return html`<hr />`;
  if (token.type === "list") {
    return html`<${token.ordered ? "ol" : "ul"}>${token.items.map((item) => html`<li>${blocks(item.tokens, folder)}</li>`)}<//>`;
  }
  if (token.type === "table") {
    const cells = (row) => row.map((cell) => inside(cell.tokens));
    const label = token.header.map(({ text }) => text).join(" ").trim() || token.rows[0]?.[0].text;
    return html`<${Table} label=${`Table: ${label}`} head=${cells(token.header)} rows=${token.rows.map(cells)} />`;
  }
  const isUnseen = token.type === "space" || token.type === "def" || /^<!--/.test(token.raw);
  return isUnseen ? null : html`<p>${token.raw}</p>`;
}

function inline(tokens, folder) {
  return tokens.map((token) => {
    const inside = () => inline(token.tokens ?? [], folder);
    if (token.type === "strong") return html`<strong>${inside()}</strong>`;
    if (token.type === "em") return html`<em>${inside()}</em>`;
    if (token.type === "codespan") return html`<code>${token.text}</code>`;
    if (token.type === "br") return html`<br />`;
    if (token.type === "image") return picture(token, folder);
    if (token.type === "link") {
      return /^https?:/.test(token.href) ? html`<a href=${token.href} rel="noreferrer"
        target="_blank">${inside()}</a>` : html`<span>${inside()}</span>`;
    }
    return token.tokens ? inside() : (token.type === "escape" || token.type === "text" ? decoded(token.text) : token.raw);
  });
}

/** A picture of the model's own folder; one of another machine is not fetched. */
function picture({ href, text }, folder) {
  if (/^[a-z]+:|^\/|\.\./i.test(href)) return html`<span>[${text || href}]</span>`;
  return html`<img class="pixels" src=${fileUrl(`${folder}/${decodeURIComponent(href)}`)} alt=${text} />`;
}

const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', "#39": "'" };
const decoded = (text) => text.replace(/&(amp|lt|gt|quot|#39);/g, (_, name) => ENTITIES[name]);
