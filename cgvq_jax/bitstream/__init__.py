"""The file format: `container` finds the version's format, `ans` codes the integers."""
