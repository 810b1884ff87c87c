#!/bin/sh
# Builds the emulated libcuda.so.1 into FOLDER, unless it is there and younger than all its sources.
#
#   kernels/cuda/emulator/build.sh FOLDER
set -eu
folder=$1
emulator=$(dirname "$0")
library=$folder/libcuda.so.1
mkdir -p "$folder"
exec 9>"$folder/lock"
flock 9
if [ -e "$library" ] && [ -z "$(find "$emulator/.." -type f -newer "$library")" ]; then
    exit 0
fi
# Under another name until it is whole: nobody loads half a library.
c++ -std=c++17 -O2 -shared -fPIC -DAMOE_EMULATE -w -o "$library.new" \
    "$emulator/machine.cc" "$emulator/driver.cc" "$emulator/dispatch.cc"
mv "$library.new" "$library"
