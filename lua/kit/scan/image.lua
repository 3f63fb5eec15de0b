-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Disk images: a raw file, or what an NBD server serves, by its URI.
--
-- Lua can neither see holes nor speak NBD; `qemu-img map` (where there is one)
-- tells the holes of a file, and nbdinfo and nbdcopy of libnbd read from a server.
-- A server's image is a stream: it can be read from its start to its end only.
--
-- Errors are raised as strings that name the image.
--
-- @module scan.image

local shell = require "scan.shell"

local M = {}

local PIECE_BYTES = 1024 * 1024
local ZERO_PIECE = ("\0"):rep (PIECE_BYTES)

-- Partition tables and what else is looked at before the rest is streamed.
local HEAD_BYTES = PIECE_BYTES

--- Is this the URI of a server, and no file's name?
-- @tparam string name
-- @treturn boolean
function M.is_uri (name)
  return name:find ("^nbds?[%w+]*://") ~= nil
end

local Image = {}
Image.__index = Image

--- Read bytes.  Of a stream only what lies at or behind the last read, or in the
-- first MiB.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @treturn string|nil fewer bytes at the end of the image; nil if they have gone by
function Image:read (offset, count)
  if not self.seekable then
    if offset + count <= #self.head then
      return self.head:sub (offset + 1, offset + count)
    end
    if offset < self.at then return nil end
    while self.at < offset do
      local passed = self.handle:read (math.min (offset - self.at, PIECE_BYTES))
      if not passed then return "" end
      self.at = self.at + #passed
    end
  elseif self.at ~= offset then
    self.handle:seek ("set", offset)
  end
  local bytes = self.handle:read (count) or ""
  self.at = offset + #bytes
  return bytes
end

-- The ranges of a file that are not holes; all of it is one if that can't be told.
local function data_ranges (image)
  local given = image.size == 0
  local function whole ()
    if given then return nil end
    given = true
    return 0, image.size
  end
  if not image.seekable or not shell.have ("qemu-img") then return whole end
  -- With the protocol, as there may be a colon in the name.
  local map = assert (io.popen ("qemu-img map -U -f raw --output=json "
                                .. shell.quote ("file:" .. image.path) .. " 2>/dev/null"))
  local is_open = true
  return function ()
    if not is_open then return nil end
    for line in map:lines () do
      local offset, count = line:match ('"start": (%d+), "length": (%d+)')
      if offset and line:find ('"zero": false', 1, true) then
        offset, count = math.tointeger (tonumber (offset)),
          math.tointeger (tonumber (count))
        given = true
        return offset, math.min (count, image.size - offset)
      end
    end
    is_open = false
    if map:close () then return nil end
    return whole ()
  end
end

--- The holes, as the option `holes` of `testing.run` wants them.
-- @treturn table|nil list of { offset, count }; nil if they can't be told
function Image:holes ()
  if not self.seekable or not shell.have ("qemu-img") then return nil end
  local holes, at = {}, 0
  for offset, count in data_ranges (self) do
    if offset > at then holes[#holes + 1] = { at, offset - at } end
    at = offset + count
  end
  if at < self.size then holes[#holes + 1] = { at, self.size - at } end
  return holes
end

--- Go through what is neither a hole nor zeroes, upwards, in pieces.
-- @tparam[opt] function progress is called with the bytes done and those in all
-- @treturn function iterator over offset and a string of up to 1 MiB
function Image:data (progress)
  local next_range = data_ranges (self)
  local at, stop = 0, 0
  return function ()
    while true do
      if at >= stop then
        local offset, count = next_range ()
        if not offset then return nil end
        at, stop = offset, offset + count
      end
      if progress then progress (at, self.size) end
      local from, piece = at, self:read (at, math.min (PIECE_BYTES, stop - at))
      if piece == "" then
        error (("%s: it ends at %d bytes, and should have %d")
                 :format (self.name, at, self.size), 0)
      end
      at = at + #piece
      if piece ~= ZERO_PIECE then return from, piece end
    end
  end
end

--- Let go of it.
function Image:close ()
  self.handle:close ()
end

local function open_stream (name)
  for _, command in ipairs { "nbdinfo", "nbdcopy" } do
    if not shell.have (command) then
      error (("%s: %s is needed to read from a server; it is in the package "
              .. "libnbd-bin"):format (name, command), 0)
    end
  end
  local size = shell.output ("nbdinfo --size -- " .. shell.quote (name))
  size = size and math.tointeger (tonumber (size))
  if not size then error (name .. ": this server can't be asked for its size", 0) end
  local handle = assert (io.popen ("nbdcopy -- " .. shell.quote (name) .. " -"))
  local head = handle:read (HEAD_BYTES) or ""
  return setmetatable ({ name = name, size = size, handle = handle, seekable = false,
                         head = head, at = #head }, Image)
end

--- Open an image.
-- @tparam string name a raw file, or an NBD URI like nbd://host/export or
-- nbd+unix:///?socket=SOCKET
-- @treturn table image with `name`, `size` (bytes) and the methods above
function M.open (name)
  if M.is_uri (name) then return open_stream (name) end
  local handle, message = io.open (name, "rb")
  local size = handle and handle:seek ("end")
  local byte, why
  if size == 0 then byte, why = handle:read (1) end
  -- The others: a directory, and a device that has more to give than it tells.
  if not size or size == math.maxinteger or byte or why then
    error (message or name .. ": a raw file or an NBD URI expected", 0)
  end
  handle:seek ("set", 0)
  if handle:read (4) == "QFI\xfb" then
    error (name .. ": this is a qcow2 file; serve it with qemu-nbd and give the URI, "
           .. "or convert it with qemu-img convert -O raw", 0)
  end
  handle:seek ("set", 0)
  handle:setvbuf ("no")
  return setmetatable ({ name = name, path = name, size = size, handle = handle,
                         seekable = true, at = 0 }, Image)
end

return M
