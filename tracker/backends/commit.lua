-- One batch of one partition: refused as a whole, or applied as a whole.
--
-- Redis isolates a script but rolls nothing back, so everything is looked at before the first
-- write; the first write is a mark that the last one takes away. Who finds the mark finds a commit
-- that was cut in the middle, and only a rebuild helps then.
--
-- KEYS  meta, set of containers, then one hash for every container that changes
-- ARGV  expected position, new position, epoch, log id, token, watermark, horizon, channel, notice,
--       then four for every hash: container, 'put' or 'drop', values to set, fields to delete.
--       The last two are lists: a count and that many strings, each with its length, four bytes
--       big-endian each. One packed argument costs client and server a fraction of thousands.
-- Positions and times are compared and stored as text: numbers in Lua are exact to 2^53 only.
-- No shebang and nothing newer than Redis 6.2.

local FIXED = 9
local PER_CONTAINER = 4
-- An even number, so that no field is parted from its value. `unpack` puts them on Lua's stack,
-- which ends at 8,000.
local CHUNK = 500
local FULL = '>' .. string.rep('I4c0', CHUNK)

local meta, containers = KEYS[1], KEYS[2]
local expected, position, epoch, log_id, token = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

if #ARGV ~= FIXED + PER_CONTAINER * (#KEYS - 2) then
  return redis.error_reply('ERR commit: ' .. #KEYS .. ' keys with ' .. #ARGV .. ' arguments')
end

local function wrong_type(key, wanted)
  local found = redis.call('TYPE', key).ok
  if found ~= 'none' and found ~= wanted then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a ' .. wanted)
  end
end

local refused = wrong_type(meta, 'hash')
if refused then
  return refused
end

local stored = redis.call('HMGET', meta, 'position', 'epoch', 'log_id', 'token', 'torn')
if stored[5] and stored[5] ~= '' then
  return 'torn'
end
if stored[3] and stored[3] ~= '' and stored[3] ~= log_id then
  return 'log_changed'
end
local at = stored[1] or '0'
if at == position and stored[4] == token then
  return 'duplicate'
end
if at ~= expected or (stored[2] or '0') ~= epoch then
  return 'stale'
end

refused = wrong_type(containers, 'set')
if refused then
  return refused
end

-- Unpack a list into chunks that a command can take. Raises when it is cut short.
local function chunks(list)
  local found = {}
  local left, at_byte = struct.unpack('>I4', list)
  while left > 0 do
    local count = math.min(left, CHUNK)
    local format = FULL
    if count < CHUNK then
      format = '>' .. string.rep('I4c0', count)
    end
    local chunk = { struct.unpack(format, list, at_byte) }
    at_byte = table.remove(chunk)
    found[#found + 1] = chunk
    left = left - count
  end
  return found
end

local work = {}
for index = 3, #KEYS do
  refused = wrong_type(KEYS[index], 'hash')
  if refused then
    return refused
  end
  local first = FIXED + PER_CONTAINER * (index - 3)
  work[#work + 1] = {
    key = KEYS[index],
    container = ARGV[first + 1],
    drop = ARGV[first + 2] == 'drop',
    puts = chunks(ARGV[first + 3]),
    deletes = chunks(ARGV[first + 4]),
  }
end

-- A server that is full, read-only or cannot save says so here, before anything has changed.
local marked = redis.pcall('HSET', meta, 'torn', token)
if type(marked) == 'table' and marked.err then
  return marked
end

for _, change in ipairs(work) do
  if change.drop then
    redis.call('UNLINK', change.key)
  end
  for _, chunk in ipairs(change.puts) do
    redis.call('HSET', change.key, unpack(chunk))
  end
  for _, chunk in ipairs(change.deletes) do
    redis.call('HDEL', change.key, unpack(chunk))
  end
  if redis.call('EXISTS', change.key) == 1 then
    redis.call('SADD', containers, change.container)
  else
    redis.call('SREM', containers, change.container)
  end
end

redis.call('HSET', meta, 'position', position, 'log_id', log_id, 'token', token,
  'watermark_ms', ARGV[6], 'horizon_ms', ARGV[7])
redis.call('HDEL', meta, 'torn')

-- Last, and its failure is ignored: a notice may be lost, but a commit may not be torn by one.
redis.pcall('PUBLISH', ARGV[8], ARGV[9])
return 'applied'
