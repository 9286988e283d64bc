PYTHON ?= python3
BIN := .venv/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
SOURCE ?= /usr/share/datasets/fashion-mnist

.PHONY: help demo space test browser data clean

help:
	@echo "make demo   install into .venv and draw clothes at several D, undisturbed and disturbed"
	@echo "make space  install into .venv and open the Space, which prints its address"
	@echo "make test   install into .venv and run the tests; with CI=1, also install the browser that some of them need"
	@echo "make data   turn Debian's dataset-fashion-mnist into data/fashion-mnist"
	@echo "make clean  remove .venv and what the demo wrote"

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

demo: .venv/installed
	$(BIN)/pfgmpp sample model_cards/pfgmpp-fashion-mnist-fast --D 16,128,2048,inf --noise 0,0.3 --output outputs/demo.png

space: .venv/installed
	cd space && ../$(BIN)/python app.py

test: .venv/installed $(if $(CI),browser)
	$(BIN)/python -m pytest

# For the tests of the Space's page, which are skipped without a browser
browser:
	@command -v chromium > /dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends chromium; }

data: data/fashion-mnist/train.parquet

data/fashion-mnist/train.parquet: | .venv/installed
	@test -d $(SOURCE) || { echo "$(SOURCE) is missing: run 'sudo apt-get install dataset-fashion-mnist' first."; exit 1; }
	$(BIN)/pfgmpp data fashion-mnist $(SOURCE) data/fashion-mnist

clean:
	rm -rf .venv outputs/demo.png
