"""The style sheet of report.html: system fonts, light and dark, no outside file."""

CSS = """
:root { color-scheme: light dark; --ink: #1c212b; --soft: #596273; --line: #dfe3ea; --page: #f6f7f9; --card: #fff;
  --accent: #0b5cad; --good: #10733c; --good-tint: #e2f4e9; --bad: #b3261e; --bad-tint: #fdeaea; --wait: #8a5a00;
  --wait-tint: #fff3d6; --code: #eef1f5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaf0; --soft: #a3adbd; --line: #333b49; --page: #14181f; --card: #1c222c; --accent: #7db8f5;
    --good: #7fdca4; --good-tint: #16382a; --bad: #ff9c94; --bad-tint: #451d1c; --wait: #ffd27a; --wait-tint: #40310c;
    --code: #262d39; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 21px; line-height: 1.25; margin: 44px 0 6px; }
h3 { font-size: 16px; margin: 18px 0 6px; }
h3 small { font-size: 14px; font-weight: 400; color: var(--soft); display: block; }
.beside th, .beside td { padding: 6px 9px; }
.beside > div { max-width: 100%; }
.beside { display: flex; flex-wrap: wrap; gap: 0 32px; }
p { margin: 6px 0 12px; max-width: 78ch; }
.soft, figcaption, caption { color: var(--soft); }
.badge { display: inline-block; padding: 2px 12px; border-radius: 99px; font-size: 14px; font-weight: 600;
  vertical-align: 5px; margin-left: 10px; }
.done { background: var(--good-tint); color: var(--good); }
.failed { background: var(--bad-tint); color: var(--bad); }
.running, .waiting { background: var(--wait-tint); color: var(--wait); }
.alert { border-left: 4px solid var(--bad); background: var(--bad-tint); padding: 10px 16px; border-radius: 6px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px;
  margin: 18px 0; padding: 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px; }
.facts dt { font-size: 13px; color: var(--soft); }
.facts dd { margin: 0; font-size: 21px; font-weight: 600; line-height: 1.3; }
.facts small { display: block; font-size: 13px; font-weight: 400; color: var(--soft); }
figure { margin: 14px 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 10px; border: 1px solid var(--line);
  background: #fff; }
figure.sheet img { background: #f4f5f7; }
figcaption { font-size: 14px; margin-top: 6px; max-width: 90ch; }
.table { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); font-size: 15px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 14px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td, tr:last-child th { border-bottom: 0; }
thead th { font-size: 13px; color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
.best { background: var(--good-tint); color: var(--good); font-weight: 700; }
.best::after { content: " ★"; }
.marked .number:not(.best)::after { content: " ★"; visibility: hidden; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
pre, code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 14px; }
pre { background: var(--code); padding: 14px 16px; border-radius: 10px; overflow-x: auto; margin: 8px 0; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; margin: 10px 0;
  padding: 0 16px; }
summary { cursor: pointer; padding: 10px 0; font-weight: 600; }
details[open] { padding-bottom: 14px; }
footer { margin-top: 56px; color: var(--soft); font-size: 14px; }
"""
