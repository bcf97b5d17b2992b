-- Removes entries of an owner that is gone.
--
-- KEYS    1 entries (sorted set), 2 owners (hash)
-- ARGV    of each entry: its prefix, the entry
-- returns how many were there
local removed, users_change = 0, 0
for at = 1, #ARGV, 2 do
  local prefix, entry = ARGV[at], ARGV[at + 1]
  if redis.call('ZREM', KEYS[1], entry) == 1 then
    removed = removed + 1
    local first, last = '[' .. prefix, '(' .. string.sub(prefix, 1, -2) .. '\1'
    if #redis.call('ZRANGEBYLEX', KEYS[1], first, last, 'LIMIT', 0, 1) == 0 then
      users_change = users_change - 1
    end
  end
end
if users_change ~= 0 then
  redis.call('HINCRBY', KEYS[2], 'users', users_change)
end
return removed
