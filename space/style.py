"""How the page looks: its fonts and colours, and what Gradio's own style lacks for small images."""

import gradio as gr


THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
CSS = """
.pixels { max-width: 100%; height: auto; image-rendering: pixelated; }
.pixels { background: white; border-radius: 4px; }
.html-container:has(.pixels) { padding: 0 !important; }
.gallery { display: grid; grid-template-columns: repeat(8, minmax(0, 1fr)); gap: 8px; }
.gallery .pixels { width: 100%; }
.rows { display: grid; grid-template-columns: max-content 1fr; gap: 4px 12px; align-items: center; }
.rows .name { text-align: right; }
.dial .tab-like-container, .dial .min_value, .dial .max_value { display: none; }
.dial-group, .dial-group > * { background: var(--block-background-fill) !important; }
.dial-value { padding-top: 6px; font-size: 22px; font-weight: 600; text-align: center; }
.ruler { position: relative; height: 1.6em; margin: -6px 8px 0; font-size: 13px; }
.ruler { color: var(--body-text-color-subdued); }
.ruler span { position: absolute; transform: translateX(-50%); }
footer .divider { display: none; }
.icon-button-wrapper:not(:has(button, a)) { display: none; }
@media (max-width: 600px) {
  .rows { grid-template-columns: 1fr; }
  .rows .name { text-align: left; }
  .sample > :first-child { display: contents; }
  .sample .dial-group { order: -2; }
  .sample > :last-child { order: -1; }
  .gallery { grid-template-columns: repeat(4, minmax(0, 1fr)); }
}
"""
