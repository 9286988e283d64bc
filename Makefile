PYTHON ?= python3
BIN := .venv/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
SOURCE ?= /usr/share/datasets/fashion-mnist
EMOJI_FONT := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
EMOJI_NAMES := /usr/share/unicode/emoji/emoji-test.txt

.PHONY: help demo space test packages data clean

help:
	@echo "make demo   install into .venv and draw emoji at several D, undisturbed and disturbed"
	@echo "make space  install into .venv and open the Space, which prints its address"
	@echo "make test   install into .venv and run the tests; with CI=1, also install the browser and the font that some of them need"
	@echo "make data   turn Debian's dataset-fashion-mnist into data/fashion-mnist, and its colour font into data/emoji"
	@echo "make clean  remove .venv and what the demo wrote"

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: .venv/installed
	$(BIN)/pfgmpp sample model_cards/pfgmpp-emoji-fast --D 16,128,2048,inf --noise 0,0.3 --columns 9 --output outputs/demo.png

space: .venv/installed
	cd space && ../$(BIN)/python app.py

test: .venv/installed $(if $(CI),packages)
	$(BIN)/python -m pytest

# For the tests of the Space's page and of drawn emoji, which are skipped without them
packages:
	@{ command -v chromium && test -f $(EMOJI_FONT) && test -f $(EMOJI_NAMES); } > /dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium fonts-noto-color-emoji unicode-data; }

# What cannot be made for want of a package does not keep the other from being made.
data:
	@$(MAKE) --no-print-directory --keep-going data/fashion-mnist/train.parquet data/emoji/train.parquet

data/fashion-mnist/train.parquet: | .venv/installed
	@test -d $(SOURCE) || { echo "$(SOURCE) is missing: run 'sudo apt-get install dataset-fashion-mnist' first."; exit 1; }
	$(BIN)/pfgmpp data fashion-mnist $(SOURCE) data/fashion-mnist

data/emoji/train.parquet: | .venv/installed
	@test -f $(EMOJI_FONT) && test -f $(EMOJI_NAMES) || { echo "$(EMOJI_FONT) or $(EMOJI_NAMES) is missing: run 'sudo apt-get install fonts-noto-color-emoji unicode-data' first."; exit 1; }
	$(BIN)/pfgmpp data emoji

clean:
	rm -rf .venv outputs/demo.png
