-- Which of a stretch of the listed runs, newest first, are of a workflow, have a tag, or hold a text: their ids.
-- KEYS: the list. ARGV: first, last, prefix of runs' keys, workflow (in full or its last part), tag (as JSON), text
-- (lower case): '' asks for nothing.
local found = {}
local workflow, tag, text = ARGV[4], ARGV[5], ARGV[6]
local fields = {'workflow', 'tags', 'arguments', 'failure', 'agent'}
for _, run_id in ipairs(redis.call('ZREVRANGE', KEYS[1], ARGV[1], ARGV[2])) do
  local facts = redis.call('HMGET', ARGV[3] .. run_id, unpack(fields))
  local name = facts[1]
  local wanted = name and (workflow == '' or name == workflow or string.sub(name, -#workflow - 1) == '.' .. workflow)
  if wanted and tag ~= '' then wanted = facts[2] and string.find(facts[2], tag, 1, true) end
  if wanted and text ~= '' then
    wanted = string.find(string.lower(run_id), text, 1, true)
    for _, fact in ipairs({1, 2, 3, 4, 5}) do
      wanted = wanted or (facts[fact] and string.find(string.lower(facts[fact]), text, 1, true))
    end
  end
  if wanted then found[#found + 1] = run_id end
end
return found
