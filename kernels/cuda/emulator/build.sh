#!/bin/sh
# Builds the emulated libcuda.so.1 and libnccl.so.2 into FOLDER, unless they are there and younger than all sources.
#
#   kernels/cuda/emulator/build.sh FOLDER
set -eu
folder=$1
emulator=$(dirname "$0")
mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9
build() {
    library=$folder/$1
    shift
    if [ -e "$library" ] && [ -z "$(find "$emulator/.." -type f -newer "$library")" ]; then
        return
    fi
    # Under another name until it is whole: nobody loads half a library.
    c++ -std=c++17 -O2 -shared -fPIC -pthread -DAMOE_EMULATE -w -o "$library.new" "$@"
    mv "$library.new" "$library"
}
build libcuda.so.1 "$emulator/machine.cc" "$emulator/driver.cc" "$emulator/dispatch.cc"
build libnccl.so.2 "$emulator/nccl.cc"
