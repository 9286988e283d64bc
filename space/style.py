"""How the page looks: its fonts and colours, and what Gradio's own style lacks for small images."""

import gradio as gr


THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.pixels { max-width: 100%; height: auto; image-rendering: pixelated; }
.pixels { background: white; border-radius: 4px; }
.plot .pixels { image-rendering: auto; }
.html-container:has(.pixels) { padding: 0 !important; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(max(64px, 11%), 1fr)); gap: 8px; }
.gallery .pixels { width: 100%; }
.rows { display: grid; grid-template-columns: max-content 1fr; gap: 4px 12px; align-items: center; }
.rows .name { text-align: right; }
.captioned { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; }
.captioned figure { margin: 0; }
.captioned .pixels { width: 100%; }
.captioned figcaption { padding-top: 4px; text-align: center; }
.picture-input canvas { display: block; width: 256px; max-width: 100%; margin: 12px 0; cursor: crosshair; }
.picture-input canvas { image-rendering: pixelated; touch-action: none; }
.picture-input :is(canvas, .example) { border-radius: 4px; outline: 1px solid var(--border-color-primary); }
.picture-input .examples { display: grid; grid-template-columns: repeat(6, 1fr); gap: 6px; max-width: 256px; }
.picture-input .example { padding: 0; margin: 0; overflow: hidden; box-shadow: none; }
.picture-input .example img { display: block; width: 100%; margin: 0; }
.picture-input .tools { display: flex; gap: 8px; }
.picture-input .tool { padding: 6px 12px; margin: 0; border-radius: 8px; cursor: pointer; }
.picture-input .tool { font-size: 14px; font-weight: 400; line-height: 1.4; }
.picture-input .tool { box-shadow: var(--button-secondary-shadow); }
.picture-input .tool { background: var(--button-secondary-background-fill); }
.picture-input .tool { color: var(--button-secondary-text-color); }
.picture-input .tool input { position: absolute; width: 1px; opacity: 0; }
.picture-input :is(button:focus-visible, .tool:focus-within) { outline: 2px solid var(--color-accent); }
.picture-input .problem { margin: 12px 0 0; color: var(--error-text-color); }
.dial .tab-like-container, .dial .min_value, .dial .max_value { display: none; }
.dial-group, .dial-group > * { background: var(--block-background-fill) !important; }
.dial-value { padding-top: 6px; font-size: 22px; font-weight: 600; text-align: center; }
.ruler { position: relative; height: 1.6em; margin: -6px 8px 0; font-size: 13px; }
.ruler { color: var(--body-text-color-subdued); }
.ruler span { position: absolute; transform: translateX(-50%); }
[data-testid="status-tracker"]:not(.hide) { animation: reveal 0s 1s backwards; }
@keyframes reveal { from { display: none; visibility: hidden; } }
footer .divider { display: none; }
.icon-button-wrapper:not(:has(button, a)) { display: none; }
@media (max-width: 800px) {
  .rows { grid-template-columns: 1fr; }
  .rows .name { text-align: left; }
  .sample > :first-child { display: contents; }
  .sample .dial-group { order: -2; }
  .sample > :last-child { order: -1; }
  .restore > :first-child { flex-grow: 1 !important; }
  .picture-input canvas, .picture-input .examples { width: 100%; max-width: 360px; }
  .captioned { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
"""
