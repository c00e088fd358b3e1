#!/usr/bin/env bash
# Importing MNN's converter runs `pip install -U` of a client of a log service, by whatever pip comes first in PATH: not into the environment that imports it, if that is not activated, but into the system's Python, where it exchanges packages.
# mnn 3.6.1, Python 3.11, Linux. One would have guessed that an import changes nothing on the machine, and that a wheel says its needs in its metadata (it says
# numpy). The install is asked for at every import for as long as the client cannot be imported; with the client there, the source goes on to the
# network for its statistics. Seen: a program of one environment brought ten packages into the Python behind PATH and put another
# version of typing_extensions into it. What helps: import MNN alone, which is enough for inference, and convert models in a container
# without a network. Here a stand-in for pip writes down what is asked of it, and nothing is installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mnn==3.6.1 numpy==2.4.6
mkdir "$folder/first" "$folder/work"
cat > "$folder/first/pip" <<'SH'
#!/bin/sh
echo "pip $*" >> "$ASKED"
SH
chmod +x "$folder/first/pip"
cd "$folder/work"
asked() { # what is asked of pip while a module is imported
    : > "$folder/asked"
    PATH="$folder/first:$PATH" ASKED="$folder/asked" "$folder/venv/bin/python" -c "$1" > "$folder/said" 2>&1 || true
    cat "$folder/asked"
}
echo "mnn 3.6.1 requires: $("$folder/venv/bin/pip" show mnn 2> /dev/null | sed -n 's/^Requires: //p')"
alone=$(asked "import MNN")
tool=$(asked "from MNN.tools import mnnconvert")
echo "import MNN: ${alone:-nothing is asked of pip}"
echo "from MNN.tools import mnnconvert: ${tool:-nothing is asked of pip}"
[ -z "$alone" ] && case $tool in "pip install -U "*) exit 0 ;; esac
echo "It is otherwise now."
exit 1
