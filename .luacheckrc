std = "lua54"
max_line_length = 90
-- Methods keep their self even where a stand-in doesn't need it.
self = false
files["policies/*.lua"] = { read_globals = { "scan" } }
files["tests/fuzz"] = { read_globals = { "scan" } }
files["tests/spec"] = { std = "lua54+busted", read_globals = { "scan" } }
exclude_files = { "build", "tests/fixtures" }
