"""The page's style sheet, on top of Gradio's: the server is blue, this device orange, in every theme."""

CSS = """
.gradio-container { --server: #0072B2; --device: #D55E00; --good: #10733c; --bad: #b3261e; --wait: #8a5a00;
  --soft: #5d6676; width: 100% !important; max-width: 1240px !important; margin: 0 auto !important; }
.dark .gradio-container, .gradio-container.dark { --server: #56B4E9; --device: #E69F00; --good: #7fdca4; --bad: #ff9c94;
  --wait: #ffd27a; --soft: #a3adbd; }
.head h1 { font-size: 22px; margin: 0; } .head p { margin: 2px 0 0; color: var(--soft); }
#prompt { border-left: 5px solid var(--device) !important; }
#generic { border-left: 5px solid var(--server) !important; }
.html-container { padding: 0 !important; }
.note { border-left: 5px solid var(--border-color-primary); padding: 8px 14px; border-radius: 6px; margin: 0;
  background: var(--background-fill-secondary); font-size: 15px; line-height: 1.45; overflow-wrap: anywhere; }
.note.good { border-color: var(--good); } .note.busy { border-color: var(--server); }
.note.alone { border-color: var(--wait); } .note.refused { border-color: var(--bad); color: var(--bad);
  font-weight: 600; }
.bar { display: flex; gap: 2px; height: 16px; margin-top: 4px; }
.bar i { flex: 1; border-radius: 3px; opacity: .22; background: var(--device); }
.bar i.server { background: var(--server); } .bar i.done { opacity: 1; }
.bar i.asked { animation: asked 1.2s ease-in-out infinite alternate; }
@keyframes asked { from { opacity: .2; } to { opacity: .65; } }
@media (prefers-reduced-motion: reduce) { .bar i.asked { animation: none; opacity: .45; } }
.legend { display: flex; gap: 18px; font-size: 13px; margin-top: 5px; color: var(--soft); margin-bottom: 8px; }
.legend span::before { content: ""; display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 6px; background: var(--device); }
.legend span.server::before { background: var(--server); }
.figures, .facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(108px, 1fr)); gap: 8px; margin: 0; }
.figures div, .facts div { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 7px 11px; }
.figures dt, .facts dt, .figures small, .facts small { font-size: 12.5px; color: var(--soft); }
.figures dd, .facts dd { margin: 0; font-size: 18px; font-weight: 600; font-variant-numeric: tabular-nums; }
.figures small, .facts small { display: block; font-weight: 400; line-height: 1.3; }
.drawn img { width: 100%; height: 100%; object-fit: contain; } .pixels img { image-rendering: pixelated; }
#share, #mix { --slider-color: var(--server); } #local { --slider-color: var(--device); }
.run h2 { font-size: 18px; margin: 22px 0 6px; } .run .soft, .run figcaption { color: var(--soft);
  font-size: 14px; }
.run figure { margin: 12px 0; } .run figure img { max-width: 100%; height: auto; border-radius: 8px; background: #fff; }
.run table { border-collapse: collapse; font-size: 14px; } .run .table { overflow-x: auto; }
.run th, .run td { padding: 5px 12px; text-align: left; border-bottom: 1px solid var(--border-color-primary); }
.run .number { text-align: right; } .run .alert { color: var(--bad); }
.run .swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 8px; }
"""
