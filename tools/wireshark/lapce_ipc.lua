-- A dissector for the protocol of docs/protocol.md, versions 1 and 2, over TCP.
--
-- Use: wireshark -X lua_script:lapce_ipc.lua, or copy it into the folder that Help > About > Folders
-- names "Personal Lua Plugins". It takes port 8080 (a preference) and any stream that begins with the magic.

local proto = Proto("lapce_ipc", "Lapce IPC")

local TYPES = {
  [0x0004] = "ERROR", [0x0005] = "HEARTBEAT", [0x0010] = "HANDSHAKE", [0x0011] = "HANDSHAKE_ACK",
  [0x0012] = "DISCONNECT", [0x0020] = "REGISTER", [0x0021] = "UNREGISTER", [0x0022] = "CANCEL",
  [0x00F0] = "ECHO",
}
local CODES = {
  "BAD_MAGIC", "VERSION_MISMATCH", "CRC_MISMATCH", "TOO_LARGE", "UNKNOWN_TYPE", "BAD_FLAGS", "UNAUTHORIZED",
  "OVERLOADED", "PROVIDER_LOST", "HANDLER_FAILED", "TIMEOUT", "CANCELLED", "SHUTTING_DOWN", "BAD_PAYLOAD",
}
local TAGS = {
  "versions", "capabilities", "identity", "credentials", "shm segment", "host id", "max_message_bytes",
}

local f = proto.fields
f.magic = ProtoField.bytes("lapce_ipc.magic", "Magic")
f.version = ProtoField.uint8("lapce_ipc.version", "Version")
f.flags = ProtoField.uint8("lapce_ipc.flags", "Flags", base.HEX)
f.compressed = ProtoField.bool("lapce_ipc.flags.compressed", "COMPRESSED", 8, nil, 0x01)
f.stream = ProtoField.bool("lapce_ipc.flags.stream", "STREAM", 8, nil, 0x04)
f.priority = ProtoField.bool("lapce_ipc.flags.priority", "PRIORITY", 8, nil, 0x08)
f.request = ProtoField.bool("lapce_ipc.flags.request", "REQUEST", 8, nil, 0x10)
f.response = ProtoField.bool("lapce_ipc.flags.response", "RESPONSE", 8, nil, 0x20)
f.reserved = ProtoField.bool("lapce_ipc.flags.reserved", "reserved", 8, nil, 0xC2)
f.type = ProtoField.uint16("lapce_ipc.type", "Message type", base.HEX, TYPES)
f.length = ProtoField.uint32("lapce_ipc.length", "Payload length")
f.id = ProtoField.uint64("lapce_ipc.id", "Message id")
f.crc = ProtoField.uint32("lapce_ipc.crc32", "CRC-32C", base.HEX)
f.crc_good = ProtoField.bool("lapce_ipc.crc32.good", "CRC is right")
f.payload = ProtoField.bytes("lapce_ipc.payload", "Payload")
f.code = ProtoField.uint16("lapce_ipc.error.code", "Error code", base.DEC, CODES)
f.text = ProtoField.string("lapce_ipc.error.text", "Error text")
f.record = ProtoField.bytes("lapce_ipc.record", "Record")
f.raw_bytes = ProtoField.uint32("lapce_ipc.uncompressed", "Uncompressed size")
f.served = ProtoField.uint16("lapce_ipc.served", "Served type", base.HEX)
f.pool_id = ProtoField.uint64("lapce_ipc.pool.id", "Pool id", base.HEX)
f.acquired = ProtoField.uint64("lapce_ipc.pool.acquired", "Acquired")
f.reused = ProtoField.uint64("lapce_ipc.pool.reused", "Reused")

local bad_crc = ProtoExpert.new("lapce_ipc.crc32.bad", "The CRC is wrong", expert.group.CHECKSUM, expert.severity.ERROR)
local an_error = ProtoExpert.new("lapce_ipc.error", "An error", expert.group.RESPONSE_CODE, expert.severity.WARN)
local lost = ProtoExpert.new("lapce_ipc.lost", "No frame begins here", expert.group.MALFORMED, expert.severity.ERROR)
proto.experts = { bad_crc, an_error, lost }

proto.prefs.port = Pref.uint("TCP port", 8080, "The server's port")
proto.prefs.check_crc = Pref.bool("Check the CRC", true, "Of frames up to 64 KiB")
local CRC_BYTES_MAX = 65536

-- CRC-32C, reflected, with Wireshark's bit library, which is there whatever Lua it was built with.
local crc_table = {}
for index = 0, 255 do
  local crc = index
  for _ = 1, 8 do
    local odd = bit.band(crc, 1) == 1
    crc = bit.rshift(crc, 1)
    if odd then crc = bit.bxor(crc, 0x82F63B78) end
  end
  crc_table[index] = crc
end

-- The sum of a version 2 frame, whose CRC field counts as zeros.
local function crc_of(frame)
  local bytes = frame:bytes()
  local crc = 0xFFFFFFFF
  for at = 0, bytes:len() - 1 do
    local byte = (at >= 20 and at < 24) and 0 or bytes:get_index(at)
    crc = bit.bxor(bit.rshift(crc, 8), crc_table[bit.band(bit.bxor(crc, byte), 0xFF)])
  end
  return bit.bnot(crc) % 4294967296
end

local MAGIC_V2, MAGIC_V1 = 0x4941504C, 0x4C504149
local HEADER_BYTES = { [1] = 19, [2] = 24 }

-- The version whose frame begins at an offset, by its magic.
local function version_at(tvb, offset)
  local magic = tvb(offset, 4):uint()
  return magic == MAGIC_V2 and 2 or magic == MAGIC_V1 and 1 or nil
end

local function frame_bytes(tvb, _, offset)
  local version = version_at(tvb, offset)
  if not version then return tvb:len() - offset end
  local length = version == 2 and tvb(offset + 8, 4):le_uint() or tvb(offset + 7, 4):uint()
  return HEADER_BYTES[version] + length
end

local function show_error(tree, payload)
  if payload:len() < 2 then return "cut off" end
  local code = payload(0, 2):le_uint()
  tree:add_le(f.code, payload(0, 2)):add_proto_expert_info(an_error)
  local text = ""
  if payload:len() > 2 then
    text = payload(2):string(ENC_UTF_8)
    tree:add(f.text, payload(2), text)
  end
  return (CODES[code] or tostring(code)) .. ": " .. text
end

local function show_records(tree, payload)
  local at = 0
  while at + 4 <= payload:len() do
    local tag, length = payload(at, 2):le_uint(), payload(at + 2, 2):le_uint()
    local whole = math.min(4 + length, payload:len() - at)
    local item = tree:add(f.record, payload(at, whole))
    item:set_text(string.format("Record %d (%s), %d bytes", tag, TAGS[tag] or "unknown", length))
    if whole > 4 then
      local value = payload(at + 4, whole - 4)
      if tag == 3 or tag == 5 then
        item:append_text(": " .. value:string(ENC_UTF_8))
      elseif (tag == 2 or tag == 7) and length == 4 then
        item:append_text(": " .. value:le_uint())
      elseif tag ~= 4 then
        item:append_text(": " .. tostring(value:bytes()))
      end
    end
    at = at + whole
  end
end

local function show_pool_report(tree, payload)
  if payload:len() ~= 32 or payload(0, 8):string() ~= "LPPOOL01" then return end
  tree:add_le(f.pool_id, payload(8, 8))
  tree:add_le(f.acquired, payload(16, 8))
  tree:add_le(f.reused, payload(24, 8))
end

local function show_payload(tree, msg_type, compressed, payload)
  tree:add(f.payload, payload)
  if compressed then
    if payload:len() >= 4 then tree:add_le(f.raw_bytes, payload(0, 4)) end
    return nil
  end
  if msg_type == 0x0004 then return show_error(tree, payload) end
  if msg_type == 0x0005 then show_pool_report(tree, payload) end
  if msg_type == 0x0010 or msg_type == 0x0011 then show_records(tree, payload) end
  if msg_type == 0x0020 or msg_type == 0x0021 then
    for at = 0, payload:len() - 2, 2 do tree:add_le(f.served, payload(at, 2)) end
  end
  return nil
end

local function note(pinfo, text)
  if tostring(pinfo.cols.info):len() > 0 then pinfo.cols.info:append("; ") end
  pinfo.cols.info:append(text)
end

local function dissect_frame(tvb, pinfo, root)
  pinfo.cols.protocol = "LAPCE"
  local tree = root:add(proto, tvb())
  local version = tvb:len() >= 19 and version_at(tvb, 0)
  if not version then
    tree:add_proto_expert_info(lost)
    note(pinfo, "no frame")
    return tvb:len()
  end
  local header = HEADER_BYTES[version]
  tree:add(f.magic, tvb(0, 4))
  tree:add(f.version, tvb(4, 1))
  local msg_type, kind, compressed, id
  if version == 2 then
    local flags = tvb(5, 1):uint()
    local item = tree:add(f.flags, tvb(5, 1))
    for _, field in ipairs({ f.compressed, f.stream, f.priority, f.request, f.response, f.reserved }) do
      item:add(field, tvb(5, 1))
    end
    tree:add_le(f.type, tvb(6, 2))
    tree:add_le(f.length, tvb(8, 4))
    tree:add_le(f.id, tvb(12, 8))
    local sum = tree:add_le(f.crc, tvb(20, 4))
    if proto.prefs.check_crc and tvb:len() <= CRC_BYTES_MAX then
      local good = crc_of(tvb()) == tvb(20, 4):le_uint()
      sum:add(f.crc_good, tvb(20, 4), good):set_generated()
      if not good then
        sum:add_proto_expert_info(bad_crc)
        note(pinfo, "WRONG CRC")
      end
    end
    msg_type, id = tvb(6, 2):le_uint(), tvb(12, 8):le_uint64()
    compressed = bit.band(flags, 0x01) ~= 0
    kind = bit.band(flags, 0x10) ~= 0 and "request" or bit.band(flags, 0x20) ~= 0 and "response" or "one-way"
  else
    tree:add(f.type, tvb(5, 2))
    tree:add(f.length, tvb(7, 4))
    tree:add(f.id, tvb(11, 8))
    msg_type, id = tvb(5, 2):uint(), tvb(11, 8):uint64()
    compressed, kind = false, "version 1"
  end
  local text
  if tvb:len() > header then
    text = show_payload(tree, msg_type, compressed, tvb(header))
  end
  local name = TYPES[msg_type] or string.format("type 0x%04X", msg_type)
  local summary = string.format("%s %s id %s, %d bytes", name, kind, tostring(id), tvb:len() - header)
  if text then summary = summary .. " (" .. text .. ")" end
  tree:append_text(", " .. summary)
  note(pinfo, summary)
  return tvb:len()
end

function proto.dissector(tvb, pinfo, root)
  pinfo.cols.info:clear()
  -- A version 1 header has the length within its first 11 bytes, a version 2 header within 12.
  dissect_tcp_pdus(tvb, root, 19, frame_bytes, dissect_frame)
  return tvb:len()
end

local tcp_ports = DissectorTable.get("tcp.port")
local used_port = nil
local function take_port()
  if used_port then tcp_ports:remove(used_port, proto) end
  used_port = proto.prefs.port
  tcp_ports:add(used_port, proto)
end
take_port()
function proto.prefs_changed() take_port() end

proto:register_heuristic("tcp", function(tvb, pinfo, root)
  if tvb:len() < 19 then return false end
  local version = version_at(tvb, 0)
  if not version or tvb(4, 1):uint() ~= version then return false end
  pinfo.conversation = proto
  proto.dissector(tvb, pinfo, root)
  return true
end)
