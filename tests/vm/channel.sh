#!/bin/sh
# Runs commands that come over the second serial port, each a line of
# `WORD BASE64`. Their output goes back as it is; a line `end-WORD CODE` follows.
port=/dev/ttyS1
stty -F $port raw -echo
exec <$port >$port 2>/dev/null
echo ready
while read -r word text; do
    printf %s "$text" | base64 -d >/run/channel-command
    sh /run/channel-command </dev/null 2>&1
    printf '\nend-%s %s\n' "$word" $?
done
