//go:build tools

// Package tools pins the programs that the test estate builds from this module.
package tools

import (
	_ "github.com/Mirantis/cri-dockerd"
)
