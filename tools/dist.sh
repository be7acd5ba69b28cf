#!/usr/bin/env bash
# dist/omnitrain-VERSION.tar.zst: a folder that runs on any x86-64 Linux with glibc 2.36 or newer,
# without the packages omnitrain was built from.
#
#   tools/dist.sh [BUILD_DIR]      WITH_FFMPEG=1 also takes the video plugin and its 130 libraries
#
# Reading video and `data make` (fonts, espeak-ng) want packages that are not in the bundle.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build}
version=$(sed -n 's/^project(omnitrain VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
name=omnitrain-$version
limit_mib=64

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
top=$work/$name
mkdir -p "$top"/{bin,lib,deploy} dist

cp "$build/bin/omnitrain" "$top/bin/"
modules=("$build/lib/omnitrain_sentencepiece.so")
[[ "${WITH_FFMPEG:-0}" == 1 ]] && modules+=("$build/lib/omnitrain_ffmpeg.so") && limit_mib=256
[[ -f "$build/lib/libomni_cuda.so" ]] && modules+=("$build/lib/libomni_cuda.so")
cp "${modules[@]}" "$top/lib/"

# What glibc itself brings is the one thing taken from the machine, and by the CUDA plugin, CUDA.
is_of_the_machine() {
  case $1 in
    libcublas* | libnccl* | libcudart* | libcuda.so.*) return 0 ;;
    ld-linux* | linux-vdso* | libc.so.* | libm.so.* | libmvec.so.* | libpthread.so.* | libdl.so.* | \
      librt.so.* | libresolv.so.* | libutil.so.* | libanl.so.* | libnss_*) return 0 ;;
  esac
  return 1
}
while read -r soname path; do
  is_of_the_machine "$soname" && continue
  [[ -n "$path" ]] || { echo "dist: $soname is needed and not found" >&2; exit 1; }
  cp -L "$path" "$top/lib/$soname"
done < <(ldd "$build/bin/omnitrain" "${modules[@]}" |
  awk '$2 == "=>" {print $1, ($3 == "not" ? "" : $3)}' | sort -u)

chmod u+w "$top"/bin/* "$top"/lib/*
strip --strip-unneeded "$top"/bin/* "$top"/lib/*
patchelf --force-rpath --set-rpath '$ORIGIN/../lib' "$top/bin/omnitrain"
for library in "$top"/lib/*; do patchelf --force-rpath --set-rpath '$ORIGIN' "$library"; done
cp -r deploy/* "$top/deploy/"
cp README.md LICENSE "$top/"

# Nothing but glibc may come from outside, and it must start.
for file in "$top/bin/omnitrain" "$top"/lib/*; do
  while read -r soname path; do
    is_of_the_machine "$soname" || [[ "$path" == "$top"/* ]] || {
      echo "dist: $(basename "$file") takes $soname from ${path:-nowhere}" >&2
      exit 1
    }
  done < <(env -i PATH=/usr/bin:/bin ldd "$file" |
    awk '$2 == "=>" {print $1, ($3 == "not" ? "" : $3)}')
done
env -i "$top/bin/omnitrain" --help >/dev/null

archive=dist/$name.tar.zst
tar -C "$work" --owner=0 --group=0 -cf - "$name" | zstd -q -19 -T0 -f -o "$archive"
size_mib=$(($(stat -c %s "$archive") / 1048576 + 1))
((size_mib <= limit_mib)) || { echo "dist: $archive has $size_mib MiB, limit $limit_mib" >&2; exit 1; }
echo "dist: $archive, $size_mib MiB, $(find "$top/lib" -type f | wc -l) libraries"
