#!/usr/bin/env bash
# Install Debian's Chromium for tests/page, where this is a Debian and we may. Says why not, and fails, where it cannot be had.
set -uo pipefail
for name in chromium chromium-browser google-chrome google-chrome-stable; do
  command -v "$name" >/dev/null && { echo "a browser is here: $name"; exit 0; }
done
command -v apt-get >/dev/null || { echo "no browser: this system has no apt-get"; exit 1; }
[ "$(id -u)" = 0 ] || { echo "no browser: only root can install one"; exit 1; }
export DEBIAN_FRONTEND=noninteractive
if said=$({ apt-get update && apt-get install -y --no-install-recommends chromium fonts-dejavu-core; } 2>&1); then
  echo "installed chromium"
else
  echo "no browser: apt-get could not install chromium: $(tail -n 1 <<<"$said")"
  exit 1
fi
