"""The file: `container` lays it out, `entropy` codes its integers."""
