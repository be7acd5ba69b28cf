#!/usr/bin/env bash
# Installs what omnitrain is built from: Debian 12 packages, nothing else. A second run finds
# everything in place and takes about a second.
set -euo pipefail

packages=(
  # compiler and build tools
  build-essential cmake ninja-build ccache mold pkg-config git ca-certificates patchelf zstd
  # control plane, configuration, logging, metrics
  libgrpc++-dev protobuf-compiler-grpc libprotobuf-dev protobuf-compiler libabsl-dev
  libyaml-cpp-dev nlohmann-json3-dev libcli11-dev libspdlog-dev libfmt-dev prometheus-cpp-dev
  # numerics and files
  libopenblas-serial-dev libgfortran-12-dev libxxhash-dev libzstd-dev libarchive-dev
  # text, pictures, sound, video
  libsentencepiece-dev libpcre2-dev libutf8proc-dev
  libjpeg62-turbo-dev libturbojpeg0-dev libpng-dev libwebp-dev
  libsndfile1-dev libavformat-dev libavcodec-dev libavutil-dev libswscale-dev libswresample-dev
  # the quickstart's data is drawn and spoken here
  libfreetype-dev fonts-dejavu-core fonts-dejavu-extra fonts-liberation fonts-freefont-ttf
  fonts-lato fonts-roboto-unhinted fonts-open-sans fonts-crosextra-caladea
  libespeak-ng-dev espeak-ng-data
  # tests and benchmarks
  libgtest-dev libgmock-dev libbenchmark-dev prometheus iproute2
)
# Fuzzing and formatting, for those who work on omnitrain itself.
developer_packages=(clang-14 libclang-rt-14-dev clang-format-14)
[[ "${1:-}" == "--no-developer" ]] || packages+=("${developer_packages[@]}")

missing=()
while read -r package; do missing+=("$package"); done < <(
  dpkg-query -W -f='${Package} ${db:Status-Abbrev}\n' "${packages[@]}" 2>/dev/null |
    awk '$2 == "ii" {print $1}' | sort -u | comm -13 - <(printf '%s\n' "${packages[@]}" | sort -u))

if (( ${#missing[@]} == 0 )); then
  echo "setup: all ${#packages[@]} packages are installed"
  exit 0
fi
echo "setup: installing ${#missing[@]} of ${#packages[@]} Debian packages: ${missing[*]}"
sudo=()
if (( EUID != 0 )); then
  command -v sudo >/dev/null || { echo "setup: run as root, or install sudo" >&2; exit 1; }
  sudo=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
# Mirrors fail for seconds, and another apt may be at work.
patient=(-o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
"${sudo[@]}" apt-get "${patient[@]}" update -qq
"${sudo[@]}" apt-get "${patient[@]}" install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "setup: done"
