#!/usr/bin/env bash
# Brings a bare Debian 12 or Ubuntu machine to where `make build` and `make test` work, and installs nothing twice.
# System packages are installed as root or through sudo. For Rust and Node it prints the one line that installs
# them; with YES=1 it runs that line where the thing is needed.
#
#   scripts/setup.sh         what building needs
#   scripts/setup.sh node    the same, and Node
#   scripts/setup.sh test    what building needs, and what stands for an owner's desktop in tests
set -euo pipefail
cd "$(dirname "$0")/.."

rust_wanted=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
node_wanted=20
rust_line="curl --proto '=https' --tlsv1.2 -fsSL https://static.rust-lang.org/rustup/rustup-init.sh | sh -s -- -y --profile minimal --component rustfmt,clippy --default-toolchain $rust_wanted"

fail() { printf '%s\n' "$@" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }
# Whether version $1 is at least version $2.
at_least() { [[ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" == "$2" ]]; }

as_root() {
  if [[ $EUID -eq 0 ]]; then "$@"; else sudo "$@"; fi
}

# Prints the Debian packages whose program is missing.
missing_packages() {
  have cc && have c++ && have ld || echo build-essential
  have git || echo git
  have curl || echo curl
  [[ -e /etc/ssl/certs/ca-certificates.crt || -e /etc/pki/tls/certs/ca-bundle.crt ]] || echo ca-certificates
  # An X server without a screen, a window manager, an owner at the keyboard, and a D-Bus.
  if [[ ${1:-} == test ]]; then
    have Xvfb || echo xvfb
    have xdotool || echo xdotool
    have openbox || echo openbox
    have dbus-daemon || echo dbus-daemon
  fi
  have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null || echo python3-venv
}

mapfile -t packages < <(missing_packages "${1:-}")
if ((${#packages[@]})); then
  line="apt-get install -y --no-install-recommends ${packages[*]}"
  have apt-get || fail "These packages are missing: ${packages[*]}. Install them with this system's package manager, then run make again."
  if [[ $EUID -ne 0 ]] && ! { have sudo && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; }; then
    fail "System packages are missing. Install them with:" "  sudo $line"
  fi
  echo "setup: $line"
  export DEBIAN_FRONTEND=noninteractive
  as_root apt-get update -qq
  # shellcheck disable=SC2086 # the line is words on purpose
  as_root env DEBIAN_FRONTEND=noninteractive $line -qq >/dev/null
fi

rust_version() { cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9.]*\).*/\1/p'; }
rust_is_here() { local v; v=$(rust_version) && [[ -n $v ]] && at_least "$v" "$rust_wanted" && cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1; }

if ! rust_is_here; then
  found=$(rust_version || true)
  why="Rust $rust_wanted with rustfmt and clippy is needed${found:+ (found $found)}."
  # A rustup that lacks this toolchain needs no installer.
  if have rustup; then rust_line="rustup toolchain install $rust_wanted --profile minimal --component rustfmt,clippy"; fi
  [[ ${YES:-} == 1 ]] || fail "$why Install it with this line, or run make again with YES=1:" "  $rust_line"
  echo "setup: $rust_line"
  bash -c "$rust_line"
  export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
  hash -r
  rust_is_here || fail "Rust was installed but cargo still does not answer; open a new shell and run make again."
fi

node_is_here() { local v; v=$(node --version 2>/dev/null) && at_least "${v#v}" "$node_wanted" && have npm; }

if ! node_is_here; then
  candidate=$(apt-cache policy nodejs 2>/dev/null | sed -n 's/ *Candidate: \([0-9]*\).*/\1/p')
  if [[ -n $candidate ]] && ((candidate >= node_wanted)); then
    node_line="sudo apt-get install -y nodejs"
  else
    node_line="curl -fsSL https://deb.nodesource.com/setup_$node_wanted.x | sudo bash - && sudo apt-get install -y nodejs"
  fi
  if [[ ${YES:-} == 1 && ${1:-} == node ]]; then
    if [[ $EUID -eq 0 ]]; then node_line=${node_line//sudo /}; fi
    echo "setup: $node_line"
    bash -c "$node_line"
    node_is_here || fail "Node was installed but does not answer with version $node_wanted or newer."
  elif [[ ${1:-} == node ]]; then
    fail "Node $node_wanted is needed. Install it with this line, or run make again with YES=1:" "  $node_line"
  else
    echo "setup: Node $node_wanted is not here; only make interop needs it. It is installed by: $node_line"
  fi
fi
