"""
The input for a picture: choose one, upload one, and draw on it.

It is a component of its own, because Gradio's open the route for uploads and write what strangers send into
files. Here the browser decodes the picture, makes it small, and sends it as the text of a PNG file.
"""

import base64

import gradio as gr
from models import HERE
from uploads import PREFIX


SIDE = 64  # of the picture that is sent, in pixels
EXAMPLES = {
    "Fox": "pictures/emoji-fox.png",
    "Butterfly": "pictures/emoji-butterfly.png",
    "Hatching chick": "pictures/emoji-chick.png",
    "Crown": "pictures/emoji-crown.png",
    "Mushroom": "pictures/emoji-mushroom.png",
    "Pizza": "pictures/emoji-pizza.png",
}
TYPES = "image/png,image/jpeg,image/gif,image/webp"
BUTTON = """<button type="button" class="example" title="{name}" data-file="gradio_api/file={file}">
<img src="gradio_api/file={file}" alt="{name}"></button>"""
BUTTONS = "".join(BUTTON.format(name=name, file=file) for name, file in EXAMPLES.items())
TEMPLATE = f"""<div class="examples">{BUTTONS}</div>
<canvas width="{SIDE}" height="{SIDE}" role="img" aria-label="The picture, on which you can draw"></canvas>
<div class="tools">
<label class="tool">Upload<input type="file" accept="{TYPES}" aria-label="Upload a picture"></label>
<button type="button" class="tool clear">Clear drawing</button>
</div>
<p class="problem" role="alert" hidden></p>"""

# Strokes are grey like the hole that the damage `mask` makes. Each of them is sent as it is drawn.
SCRIPT = r"""
const LARGEST = 20e6, MOST_PIXELS = 50e6, BRUSH = 6, GREY = '#808080';
const SIGNATURES = [/^\x89PNG\r\n\x1a\n/, /^\xff\xd8\xff/, /^GIF8[79]a/, /^RIFF[^]{4}WEBP/];
const canvas = element.querySelector('canvas');
const problem = element.querySelector('.problem');
const file = element.querySelector('input');
const brush = canvas.getContext('2d', {willReadFrequently: true});
let clean = null;   // the picture without what was drawn on it
let latest = 0;     // of several pictures that are being read, the one that was chosen last

function tell(sentence) {
  problem.textContent = sentence;
  problem.hidden = !sentence;
}

function send() {
  props.value = canvas.toDataURL('image/png');
}

async function decode(source) {
  const image = new Image();
  image.src = source;
  await new Promise((done, fail) => { image.onload = done; image.onerror = fail; });
  // Until here the browser has read no more than the header.
  if (image.naturalWidth * image.naturalHeight > MOST_PIXELS) {
    throw new RangeError('The picture may have at most 50 million pixels, but has '
      + `${image.naturalWidth.toLocaleString('en')} × ${image.naturalHeight.toLocaleString('en')}.`);
  }
  await image.decode();
  return image;
}

async function show(source, isNew) {
  const number = ++latest;
  tell('');
  let image;
  try {
    image = await decode(source);
  } catch (error) {
    const isTooLarge = error instanceof RangeError;
    if (number === latest)
      tell(isTooLarge ? error.message : 'The picture cannot be read: it is damaged.');
    return;
  }
  if (number !== latest) return;
  const scale = Math.max(canvas.width / image.naturalWidth, canvas.height / image.naturalHeight);
  const width = scale * image.naturalWidth, height = scale * image.naturalHeight;
  brush.fillStyle = 'white';
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.imageSmoothingQuality = 'high';
  brush.drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  clean = brush.getImageData(0, 0, canvas.width, canvas.height);
  if (isNew) send();
}

async function upload(chosen) {
  const head = String.fromCharCode(...new Uint8Array(await chosen.slice(0, 12).arrayBuffer()));
  if (!chosen.size) return tell('The file is empty.');
  if (!SIGNATURES.some(signature => signature.test(head)))
    return tell('The file must be a PNG, JPEG, GIF or WebP picture.');
  if (chosen.size > LARGEST) return tell('The file may have at most 20 million bytes.');
  const address = URL.createObjectURL(chosen);
  await show(address, true);
  URL.revokeObjectURL(address);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width * canvas.width,
          (event.clientY - box.top) / box.height * canvas.height];
}

canvas.addEventListener('pointerdown', event => {
  if (event.button || !clean) return;
  canvas.setPointerCapture(event.pointerId);
  Object.assign(brush, {lineWidth: BRUSH, lineCap: 'round', lineJoin: 'round', strokeStyle: GREY});
  brush.beginPath();
  brush.moveTo(...place(event));
  brush.lineTo(...place(event));
  brush.stroke();
  send();
});
canvas.addEventListener('pointermove', event => {
  if (!canvas.hasPointerCapture(event.pointerId)) return;
  brush.lineTo(...place(event));
  brush.stroke();
  send();
});
file.addEventListener('change', () => {
  if (file.files.length) upload(file.files[0]);
  file.value = '';   // the same file may be chosen again
});
element.querySelector('.clear').addEventListener('click', () => {
  if (!clean) return;
  brush.putImageData(clean, 0, 0);
  send();
});
for (const example of element.querySelectorAll('.example'))
  example.addEventListener('click', () => show(example.dataset.file, true));
show(props.value, false);
"""


def add_picture_input() -> gr.HTML:
    """
    Add an input for a picture, which begins with the first of `EXAMPLES`.

    Returns:
        `gradio.HTML`: The input. Its value is the picture as a data URI of a PNG file.
    """
    first = (HERE / next(iter(EXAMPLES.values()))).read_bytes()
    return gr.HTML(
        PREFIX + base64.b64encode(first).decode(),
        label="Picture",
        html_template=TEMPLATE,
        js_on_load=SCRIPT,
        elem_classes="picture-input",
        container=True,
        padding=True,
    )
