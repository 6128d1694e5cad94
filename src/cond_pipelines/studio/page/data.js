// View 1: the wall of what the network will see, what is left out and why, and the command that trains on it.

import { Fields } from "./form.js";
import { Act, Bars, Check, Choice, Command, Empty, Facts, PathChoice, Problem, Waiting } from "./parts.js";
import { api, goTo, html, number, query, useAnswer, useEffect, useKept, useMemo, useRef, useState, useStudio } from "./parts.js";

const FORMULAS = { none: "p(x)", class: "p(x|y)", text: "p(x|caption)", embedding: "p(x|vector)" };
export const SETTINGS = Object.entries(FORMULAS).map(([name, formula]) => [name, `${name}: ${formula}`]);
const [PAGE, GAP_PX, CAPTION_PX, STEP_PX] = [200, 10, 20, 60];

export default function Data({ here }) {
  const { data } = useStudio();
  const path = here.paths[0] ?? data[0]?.path;
  const [conditioning, setConditioning] = useKept("conditioning", "none");
  const [args, setArgs] = useKept("data-args", {});
  const [looked, setLooked] = useState({});
  const latest = useRef();
  const look = async () => {
    latest.current?.abort(); // the server need not go on with it
    const { signal } = (latest.current = new AbortController());
    const request = { path, conditioning, args };
    setLooked({ isWaiting: true });
    try {
      for (const how of ["look", "check"]) {
        const look = await api(`data/${how}`, request, signal);
        if (!signal.aborted) setLooked({ look, request });
        if (look.is_checked) return;
      }
    } catch (error) {
      if (!signal.aborted) setLooked((before) => ({ ...before, isWaiting: false, error }));
    }
  };
  useEffect(() => {
    if (path) look();
    return () => latest.current?.abort();
  }, [path, conditioning]);
  if (!data.length) {
    return html`<${Empty}>No folder with images here yet. Start the studio with one: cond-pipelines studio FOLDER<//>`;
  }
  return html`<div class="split">
    <form class="card" aria-label="Which data" onSubmit=${(event) => (event.preventDefault(), look())}>
      <${PathChoice} label="Folder" items=${data} value=${path} onValue=${(chosen) => goTo("data", { path: chosen })} />
      <${Choice} label="Setting" options=${SETTINGS} value=${conditioning} onValue=${setConditioning}
        help="What the network learns to obey." />
      <${MoreSettings} args=${args} setArgs=${setArgs} />
      <button type="submit" class="main">Look</button>
    </form>
    <div>
      ${looked.isWaiting && html`<${Waiting}>Reading the names<//>`}
      <${Problem} error=${looked.error} />
      ${looked.look?.is_checked === false && !looked.error && html`<${Waiting}>
        Looking at each image: files that cannot be read, copies and the text of inspect follow<//>`}
      ${looked.look && html`<${Looked} ...${looked} again=${look} />`}
    </div>
  </div>`;
}

function MoreSettings({ args, setArgs }) {
  const [form] = useAnswer("train/form");
  const group = form?.groups.find(({ title }) => title.startsWith("Data"));
  const resolution = form?.groups.flatMap(({ fields }) => fields).find(({ name }) => name === "resolution");
  if (!group) return null;
  const inPath = new Set(["train_data_dir", "dataset_name", "resolution"]);
  const others = group.fields.filter(({ name }) => !inPath.has(name));
  return html`<${Fields} fields=${[resolution]} values=${args} onValues=${setArgs} />
    <details>
      <summary>More settings</summary>
      <${Fields} fields=${others} values=${args} onValues=${setArgs} />
    </details>`;
}

function Looked({ look, request, again }) {
  const [draft, setDraft] = useKept("train", {});
  const [before, setBefore] = useKept("data-before", {}); // what an earlier look chose is not chosen any more
  const train = () => {
    const skip = look.bad_rows.length ? { on_bad_image: "skip" } : {}; // they were seen, with their reasons
    const others = Object.fromEntries(Object.entries(draft).filter(([name]) => !(name in before)));
    setBefore({ ...skip, ...request.args });
    setDraft({ ...skip, ...others, ...request.args, train_data_dir: request.path, conditioning: request.conditioning });
    setTimeout(() => goTo("run", { new: 1 }));
  };
  const numLeftOut = look.excluded.reduce((sum, { count }) => sum + count, look.bad_rows.length);
  return html`<section class="card" aria-label="In short">
      <div class="head">
        <h2>${request.path.split("/").pop()}</h2>
        <${Act} run=${train} isMain isOff=${!look.is_checked} aria-describedby="not-checked">Train on this<//>
      </div>
      ${!look.is_checked && html`<p class="soft" id="not-checked">You can train on it when each image is checked.</p>`}
      <${Facts} pairs=${[
        ["images", number(look.total)],
        ["to train on", look.is_checked ? number(look.num_train) : "…"],
        ["held out", look.is_checked ? number(look.num_held_out) : "…"],
        ["left out", look.is_checked ? number(numLeftOut) : "…"],
        ["resolution", look.resolution_px && `${look.resolution_px} px`],
        ["classes", look.classes?.length || ""],
      ]} />
    </section>
    <${LeftOut} look=${look} />
    <${Wall} key=${look.key} look=${look} again=${again} />
    <div class="halves">
      ${look.classes?.length > 0 &&
      html`<section class="card"><h2>Balance</h2>
        <${Bars} rows=${look.classes.map(({ name, count }) => [name, count])} /></section>`}
      ${look.caption_lengths?.length > 0 &&
      html`<section class="card"><h2>Words of a caption</h2>
        <${Bars} rows=${look.caption_lengths.map(([words, count]) => [`${words} words`, count])} /></section>`}
    </div>
    <${Duplicates} look=${look} />
    <section class="card">
      ${look.text && html`<h2>What inspect says</h2>
        <pre id="inspect" tabindex="0" aria-label="The text of inspect">${look.text}</pre>`}
      ${look.is_checked && html`<${Command} text=${look.command} label="Train with these settings in a terminal" />`}
    </section>`;
}

function LeftOut({ look }) {
  const reasons = look.excluded.filter(({ count }) => count);
  const notes = look.notes ?? [];
  if (!reasons.length && !look.bad_rows.length && !notes.length) return null;
  return html`<section class="card" id="left-out">
    <h2>Left out, and why</h2>
    ${reasons.map(
      ({ reason, count, files }) => html`<details open=${count <= 10} key=${reason}>
        <summary>${reason}: ${number(count)}</summary>
        <ul class="names">${files.map((name) => html`<li>${name}</li>`)}</ul>
        ${count > files.length && html`<p class="soft">and ${number(count - files.length)} more</p>`}
      </details>`,
    )}
    ${look.bad_rows.length > 0 &&
    html`<ul class="names" aria-label="Files that cannot be read">${look.bad_rows.map((line) => html`<li>${line}</li>`)}</ul>`}
    ${notes.map((line) => html`<p class="note">${line}</p>`)}
  </section>`;
}

const thumb = (key, i) => `/api/data/thumb?${query({ key, i })}`;

function Duplicates({ look }) {
  const [isOpen, setIsOpen] = useState(false);
  const groups = look.duplicates ?? [];
  if (!groups.length) return null;
  return html`<section class="card">
    <details onToggle=${(event) => setIsOpen(event.target.open)}>
      <summary>Images that are there more than once: ${number(look.num_duplicates)}</summary>
      <div class="tiles">
        ${isOpen &&
        groups.map(
          (group) => html`<figure>
            <img class="pixels" loading="lazy" src=${thumb(look.key, group[0])} alt=${`Image ${group[0]}`} />
            <figcaption>images ${group.join(", ")}</figcaption>
          </figure>`,
        )}
      </div>
      ${look.num_duplicates > groups.length && html`<p class="soft">The first ${groups.length} are shown.</p>`}
    </details>
  </section>`;
}

// ---------------------------------------------------------------------------------------------------- the wall
/** Items of a wall by their place: pages of them are read when they come into sight, anew when `version` changes. */
function useItems(filter, version, [first, last], again) {
  const name = query(filter);
  const [read, setRead] = useState({ name });
  const wanted = useRef({});
  if (wanted.current.name !== name || wanted.current.version !== version) {
    wanted.current = { name, version, pages: new Set() };
  }
  const mine = read.name === name ? read : { name };
  useEffect(() => {
    const mark = wanted.current;
    for (let page = Math.floor(first / PAGE); page <= Math.floor(last / PAGE); page += 1) {
      if (mark.pages.has(page)) continue;
      mark.pages.add(page);
      api(`data/wall?${name}&${query({ start: page * PAGE, count: PAGE })}`).then(
        ({ total, items }) =>
          mark === wanted.current &&
          setRead((all) => ({ name, total, pages: { ...(all.name === name ? all.pages : {}), [page]: items } })),
        (error) =>
          mark === wanted.current &&
          (/look at the data again/.test(error.message) ? again() : setRead({ name, total: 0, error })),
      );
    }
  }, [name, version, first, last]);
  return { ...mine, at: (i) => mine.pages?.[Math.floor(i / PAGE)]?.[i % PAGE] };
}

/** The part of a box that is seen: its width, its height, and how far it is scrolled, in steps. */
function useSight(box) {
  const [sight, setSight] = useState({ top: 0, width: 0, height: 0 });
  useEffect(() => {
    const seen = box.current;
    const measure = () => {
      const { scrollTop, clientWidth: width, clientHeight: height } = seen;
      const next = { top: scrollTop - (scrollTop % STEP_PX), width, height };
      setSight((before) => (Object.keys(next).every((key) => next[key] === before[key]) ? before : next));
    };
    const resized = new ResizeObserver(measure);
    resized.observe(seen);
    seen.addEventListener("scroll", measure, { passive: true });
    return () => resized.disconnect();
  }, []);
  return sight;
}

/** A list of any length: only the rows in sight are elements. Arrow keys move through it, Enter shows one in large. */
function Wall({ look, again }) {
  const box = useRef();
  const [name, setName] = useState("");
  const [heldOut, setHeldOut] = useState(false);
  const [current, setCurrent] = useState(0);
  const [large, setLarge] = useState(null);
  const { top, width, height } = useSight(box);
  const size = width > 600 ? 96 : 84;
  const columns = Math.max(1, Math.floor((width - GAP_PX) / (size + GAP_PX)));
  const rowPx = size + CAPTION_PX + GAP_PX;
  const first = Math.max(0, (Math.floor(top / rowPx) - 2) * columns);
  const last = (Math.ceil((top + height) / rowPx) + 2) * columns;
  const filter = { key: look.key, class: name || undefined, held_out: heldOut ? 1 : undefined };
  const items = useItems(filter, look.is_checked, [first, Math.min(last, (look.total || 1) - 1)], again);
  const total = items.total ?? 0;
  const choose = (i) => {
    const next = Math.min(total - 1, Math.max(0, i));
    setCurrent(next);
    const y = Math.floor(next / columns) * rowPx;
    const { scrollTop } = box.current;
    if (y < scrollTop || y + rowPx > scrollTop + height) {
      box.current.scrollTop = y < scrollTop ? y : y + rowPx - height + GAP_PX;
    }
  };
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, Home: -total, End: total };
  const pressed = (event) => {
    if (event.key in moves) choose(current + moves[event.key]);
    else if (event.key === "Enter" && items.at(current)) setLarge(items.at(current));
    else return;
    event.preventDefault();
  };
  const inSight = useMemo(
    () => Array.from({ length: Math.max(0, Math.min(last, total) - first) }, (_, n) => first + n),
    [first, last, total],
  );
  const refilter = (set) => (value) => {
    set(value);
    setCurrent(0);
    box.current.scrollTop = 0;
  };
  const names = (look.classes ?? []).map((one) => [one.name, `${one.name} (${number(one.count)})`]);
  return html`<section class="card" aria-label="The wall">
    <div class="head">
      <h2>What the network sees <small>${items.total === undefined ? "" : `${number(total)} images`}</small></h2>
      <div class="row">
        ${names.length > 0 &&
        html`<${Choice} label="Class" value=${name} options=${[["", "all"], ...names]} onValue=${refilter(setName)} />`}
        ${look.num_held_out > 0 &&
        html`<${Check} label="only held out" value=${heldOut} onValue=${refilter(setHeldOut)} />`}
      </div>
    </div>
    <${Problem} error=${items.error} />
    <div class="wall" ref=${box} role="listbox" tabindex="0" onKeyDown=${pressed} style=${{ "--thumb": `${size}px` }}
      aria-label="Images as the network sees them" aria-activedescendant=${total ? `tile-${current}` : undefined}>
      <div role="presentation" style=${{ height: `${Math.ceil(total / columns) * rowPx + GAP_PX}px` }}></div>
      ${inSight.map(
        (i) => html`<${Tile} key=${i} i=${i} item=${items.at(i)} look=${look} isCurrent=${i === current} total=${total}
          left=${GAP_PX + (i % columns) * (size + GAP_PX)} top=${GAP_PX + Math.floor(i / columns) * rowPx}
          onOpen=${() => (setCurrent(i), setLarge(items.at(i)))} />`,
      )}
    </div>
    ${large && html`<${Large} item=${large} look=${look} onClose=${() => (setLarge(null), box.current.focus())} />`}
  </section>`;
}

function Tile({ i, item, look, isCurrent, total, left, top, onOpen }) {
  const image = useRef();
  useEffect(() => {
    const { current } = image;
    return () => current.removeAttribute("src"); // what is out of sight is not waited for
  }, []);
  const text = item ? (item.condition ?? item.name ?? `image ${item.i}`) : "";
  return html`<div class="tile" id=${`tile-${i}`} role="option" aria-selected=${isCurrent} aria-setsize=${total}
    aria-posinset=${i + 1} aria-label=${text || `image ${i}`} style=${{ left: `${left}px`, top: `${top}px` }} onClick=${onOpen}>
    <img class="pixels" ref=${image} src=${item && thumb(look.key, item.i)} alt="" />
    <span class="caption">${text}</span>
  </div>`;
}

function Large({ item, look, onClose }) {
  const dialog = useRef();
  useEffect(() => dialog.current.showModal(), []);
  return html`<dialog ref=${dialog} onClose=${onClose} aria-label="An image in large">
    <img class="big pixels" src=${thumb(look.key, item.i)} alt=${item.condition ?? "The image as the network sees it"} />
    <${Facts} pairs=${[["condition", item.condition], ["file", item.name], ["used to", item.held_out ? "measure" : "train"]]} />
    <button type="button" onClick=${() => dialog.current.close()}>Close</button>
  </dialog>`;
}
