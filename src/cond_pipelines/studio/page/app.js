// The frame: six views, the state of the server, light and dark.

import { Messages, Studio, html, linkTo, place, render, useAnswer, useEffect, useMemo, useRef, useState } from "./parts.js";

const VIEWS = { data: "Data", run: "Run", watch: "Watch", play: "Play", judge: "Judge", share: "Share" };
const THEMES = { auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" };
const EVERY_MS = 1000;

function usePlace() {
  const [here, setHere] = useState(place);
  useEffect(() => {
    const changed = () => setHere(place());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return here;
}

/** [what was chosen, what is seen: "light" or "dark", choose the next]. */
function useTheme() {
  const [chosen, setChosen] = useState(() => localStorage.getItem("theme") ?? "auto");
  const dark = useMemo(() => matchMedia("(prefers-color-scheme: dark)"), []);
  const [isDark, setIsDark] = useState(dark.matches);
  useEffect(() => dark.addEventListener("change", () => setIsDark(dark.matches)), []);
  document.documentElement.dataset.theme = chosen;
  const names = Object.keys(THEMES);
  const next = () => {
    const name = names[(names.indexOf(chosen) + 1) % names.length];
    localStorage.setItem("theme", name);
    setChosen(name);
  };
  return [chosen, chosen === "auto" ? (isDark ? "dark" : "light") : chosen, next];
}

/** The view of a name: its module is loaded when it is shown first. */
function useView(name) {
  const [loaded, setLoaded] = useState({});
  useEffect(() => {
    import(`./${name}.js`).then((module) => setLoaded({ name, View: module.default }));
  }, [name]);
  return loaded.name === name ? loaded.View : undefined;
}

function Top({ here, theme, nextTheme }) {
  return html`<header class="top">
    <span class="brand"><img src="page/icon.svg" alt="" />studio</span>
    <nav aria-label="Views">
      ${Object.entries(VIEWS).map(
        ([view, text]) => html`<a href=${linkTo(view)} aria-current=${here.view === view ? "page" : undefined}>${text}</a>`,
      )}
    </nav>
    <button type="button" class="theme" onClick=${nextTheme} aria-label=${`Colours: ${theme}`}>${THEMES[theme]}</button>
  </header>`;
}

function App() {
  const here = usePlace();
  const [chosen, theme, nextTheme] = useTheme();
  const [state, error] = useAnswer("state", EVERY_MS);
  const name = here.view in VIEWS ? here.view : "data";
  const View = useView(name);
  const main = useRef();
  const isFirst = useRef(true);
  useEffect(() => {
    document.title = `${VIEWS[name]} · studio`;
    if (!isFirst.current) main.current.focus({ preventScroll: true });
    isFirst.current = false;
    scrollTo(0, 0);
  }, [name]);
  const studio = useMemo(() => ({ ...state, theme }), [state, theme]);
  return html`<${Studio.Provider} value=${studio}>
    <a class="skip unseen" href="#main" onClick=${(event) => (event.preventDefault(), main.current.focus())}>To the view</a>
    <${Top} here=${{ view: name }} theme=${chosen} nextTheme=${nextTheme} />
    <main id="main" tabindex="-1" ref=${main}>
      <h1 class="unseen">${VIEWS[name]}</h1>
      ${error && html`<p class="note bad" role="alert" id="gone">${error.message}</p>`}
      ${state && View && html`<${View} here=${here} key=${name} />`}
    </main>
    <${Messages} />
  <//>`;
}

render(html`<${App} />`, document.getElementById("app"));
