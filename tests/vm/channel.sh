#!/bin/sh
# Runs commands that come over the second serial port, each a line of
# `WORD SECONDS BASE64`, and ends those that take longer. Their output goes back as
# it is; a line `end-WORD CODE` follows.
port=/dev/ttyS1
stty -F $port raw -echo
exec <$port >$port 2>/dev/null
echo ready
while read -r word seconds text; do
    printf %s "$text" | base64 -d >/run/channel-command
    timeout --kill-after=10 "$seconds" sh /run/channel-command </dev/null 2>&1
    printf '\nend-%s %s\n' "$word" $?
done
