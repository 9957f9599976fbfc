#!/bin/sh
# Puts QEMU of Debian 12's backports beside the machine's own, and prints the path of a program that starts it:
#
#     export TESTBED_QEMU="$(crates/testbed/fetch-qemu.sh target/qemu-backports)"
#
# Nothing is installed and no apt setting of the machine is changed: the packages are unpacked into the directory, and
# apt's lists for this are in there too. The libraries it is linked with are those of the machine's own
# qemu-system-x86, which must be installed. On a Debian that has no bookworm in its sources there is nothing to fetch:
# the script says so and fails.
set -eu

directory=${1:?usage: fetch-qemu.sh DIRECTORY}
mkdir -p "$directory/lists/partial" "$directory/sources"
directory=$(cd "$directory" && pwd)
program=$directory/qemu-system-x86_64

if ! [ -x "$program" ]; then
    # The archive that the machine has bookworm from has its backports too.
    archive=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Created-By: Packages' | head -n 1)
    if [ -z "$archive" ]; then
        echo "fetch-qemu.sh: no bookworm in apt's sources, or no apt-get update yet" >&2
        exit 1
    fi
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive bookworm-backports main" \
        > "$directory/sources/backports.list"
    backports() {
        apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$directory/sources" \
            -o Dir::State::lists="$directory/lists" -o APT::Sandbox::User=root "$@" >&2
    }
    backports update
    cd "$directory"
    backports download qemu-system-x86 qemu-system-data -t bookworm-backports
    for package in *.deb; do
        dpkg -x "$package" root
        rm "$package"
    done
    if ldd root/usr/bin/qemu-system-x86_64 | grep 'not found' >&2; then
        echo "fetch-qemu.sh: this QEMU lacks libraries here: install qemu-system-x86" >&2
        exit 1
    fi
    # Last, and in one step: its presence says that all went well.
    cat > program.new <<END
#!/bin/sh
exec "$directory/root/usr/bin/qemu-system-x86_64" -L "$directory/root/usr/share/qemu" -L /usr/share/seabios "\$@"
END
    chmod +x program.new
    mv program.new "$program"
fi
echo "$program"
