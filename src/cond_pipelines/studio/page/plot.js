// A plot of curves over one another, by uPlot, in the colours of the page.

import uPlot from "./vendor/uPlot.js";
import { html, short, useEffect, useRef, useStudio } from "./parts.js";

const NUM_COLORS = 6;

/** What a colour of style.css is now: "--ink" to "rgb(...)", which a canvas takes. */
function colorOf(element, name) {
  element.style.color = `var(${name})`;
  const { color } = getComputedStyle(element);
  element.style.color = "";
  return color;
}

function optionsOf(element, { series, x, isLog, marker, height }) {
  const [ink, line, edge] = ["--soft", "--line", "--ink"].map((name) => colorOf(element, name));
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 }, font: "12px system-ui" };
  const curves = series.map(({ name, isDots, isDashed, color }, i) => {
    const stroke = colorOf(element, `--series-${(color ?? i) % NUM_COLORS}`);
    const points = isDots ? { show: true, size: 6, fill: stroke } : { size: 6, fill: stroke };
    return { label: name, stroke, width: 2, dash: isDashed ? [6, 4] : undefined, spanGaps: true, points };
  });
  const drawMarker = (plot) => {
    if ((marker.current ?? null) === null) return;
    const { ctx, bbox } = plot;
    const left = Math.round(plot.valToPos(marker.current, "x", true));
    ctx.save();
    ctx.strokeStyle = edge;
    ctx.setLineDash([3, 3]);
    ctx.beginPath();
    ctx.moveTo(left, bbox.top);
    ctx.lineTo(left, bbox.top + bbox.height);
    ctx.stroke();
    ctx.restore();
  };
  return {
    width: Math.max(160, element.clientWidth),
    height,
    scales: { x: { time: false }, y: { distr: isLog ? 3 : 1 } },
    series: [{ label: x }, ...curves],
    axes: [axis, { ...axis, size: 64, values: (_, values) => values.map((value) => (value === null ? "" : short(value, 3))) }],
    cursor: { y: false },
    hooks: { draw: [drawMarker] },
  };
}

/** Columns for uPlot: one x for all curves. A value that is missing at an x is null. */
function columnsOf(series) {
  const tables = series.map(({ points }) => {
    const sorted = [...points].sort(([a], [b]) => a - b);
    return [sorted.map(([at]) => at), sorted.map(([, value]) => value)];
  });
  return uPlot.join(tables);
}

/**
 * series: [{name, points: [[x, y], ...], isDots, isDashed, color}]. marker: an x where a line stands, or null.
 * For those who do not see it, its label says the last value of each curve.
 */
export function Plot({ label, series, x = "step", isLog = false, marker = null, height = 230 }) {
  const box = useRef();
  const plot = useRef();
  const at = useRef();
  at.current = marker;
  const { theme } = useStudio();
  const shown = series.filter(({ points }) => points.length);
  const kinds = JSON.stringify(shown.map(({ name, isDots, isDashed }) => [name, isDots, isDashed]));
  useEffect(() => {
    if (!shown.length) return undefined;
    const options = optionsOf(box.current, { series: shown, x, isLog, marker: at, height });
    plot.current = new uPlot(options, columnsOf(shown), box.current);
    const resized = new ResizeObserver(([{ contentRect }]) => {
      if (contentRect.width > 0) plot.current?.setSize({ width: contentRect.width, height });
    });
    resized.observe(box.current);
    return () => {
      resized.disconnect();
      plot.current.destroy();
      plot.current = undefined;
    };
  }, [kinds, isLog, theme, height]);
  useEffect(() => plot.current?.setData(columnsOf(shown)), [series]);
  useEffect(() => void (plot.current?.status === 1 && plot.current.redraw()), [marker]); // 1: it was drawn once
  if (!shown.length) return null;
  const last = shown.map(({ name, points }) => `${name} ${short(points.at(-1)[1])} at ${x} ${short(points.at(-1)[0], 8)}`);
  return html`<figure><div class="plot" role="img" aria-label=${`${label}: ${last.join("; ")}`} ref=${box}></div></figure>`;
}
