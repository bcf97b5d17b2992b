-- States which sessions of some users one logic process serves. One call is atomic: it replaces what
-- that owner had stated of these users, fences what belongs to earlier lives of a gateway, and
-- returns what other owners have stated.
--
-- KEYS    1 entries (sorted set), 2 owners (hash), 3… the newest epoch of each gateway named below
-- ARGV    1 owner, 2 sequence of this call, 3 how long an epoch is remembered (ms), 4 gateways,
--         then of each gateway: its name, the epoch stated (8 bytes, big-endian),
--         then of each user: prefix, how many entries, the entries
-- returns {the owner's last sequence before this call, {of each user: {entries of others}}, {entries
--         refused, because their gateway has a newer epoch}}, or {that sequence} alone when this call
--         comes too late and nothing was changed
local entries, owners = KEYS[1], KEYS[2]
local owner, sequence, epoch_ms = ARGV[1], ARGV[2], ARGV[3]

-- A command that a broken connection left behind may arrive after newer ones.
local stored = tonumber(redis.call('HGET', owners, owner) or '0')
if stored >= tonumber(sequence) then
  return { stored }
end
redis.call('HSET', owners, owner, sequence)

-- Strings are not compared as such: Lua would ask the locale.
local function newer(one, other)
  local high, low = struct.unpack('>I4I4', one)
  local other_high, other_low = struct.unpack('>I4I4', other)
  return high > other_high or (high == other_high and low > other_low)
end

local at = 5
local newest = {}
for gateway = 1, tonumber(ARGV[4]) do
  local name, epoch, key = ARGV[at], ARGV[at + 1], KEYS[gateway + 2]
  at = at + 2
  local known = redis.call('GET', key)
  if known and #known == 8 and newer(known, epoch) then
    epoch = known
  elseif known ~= epoch then
    redis.call('SET', key, epoch, 'PX', epoch_ms)
  end
  newest[name] = epoch
end

-- Where things are in an entry, from the end of its prefix: see entry.rs.
local function is_fenced(entry, prefix)
  local epoch = string.sub(entry, #prefix + 9, #prefix + 16)
  local length = struct.unpack('>I4', string.sub(entry, #prefix + 35, #prefix + 38))
  local fence = newest[string.sub(entry, #prefix + 39, #prefix + 38 + length)]
  return fence and newer(fence, epoch)
end

local found_of_users, refused, users_change = {}, {}, 0
while at <= #ARGV do
  local prefix, stated = ARGV[at], tonumber(ARGV[at + 1])
  at = at + 2
  local found =
    redis.call('ZRANGEBYLEX', entries, '[' .. prefix, '(' .. string.sub(prefix, 1, -2) .. '\1')
  local others, mine = {}, {}
  for _, entry in ipairs(found) do
    if string.sub(entry, #prefix + 1, #prefix + 8) == owner then
      mine[entry] = true
    elseif is_fenced(entry, prefix) then
      redis.call('ZREM', entries, entry)
    else
      others[#others + 1] = entry
    end
  end
  local here = #others
  for _ = 1, stated do
    local entry = ARGV[at]
    at = at + 1
    if is_fenced(entry, prefix) then
      refused[#refused + 1] = entry
    else
      here = here + 1
      if mine[entry] then
        mine[entry] = nil
      else
        redis.call('ZADD', entries, 0, entry)
      end
    end
  end
  for entry in pairs(mine) do
    redis.call('ZREM', entries, entry)
  end
  if #found == 0 and here > 0 then
    users_change = users_change + 1
  elseif #found > 0 and here == 0 then
    users_change = users_change - 1
  end
  found_of_users[#found_of_users + 1] = others
end
if users_change ~= 0 then
  redis.call('HINCRBY', owners, 'users', users_change)
end
return { stored, found_of_users, refused }
