#!/bin/bash
echo "checks.sh looked at $(hostname)"
