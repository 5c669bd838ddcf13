-- Store a task's state or result and what is recorded with it, unless another worker has the task by now.
--   KEYS[1]  the result     KEYS[2]  the worker's messages in flight     KEYS[3]  those of them that were started
--   ARGV[1]  the result     ARGV[2]  seconds it is kept, or '0'
--   ARGV[3]  the number of the task's message in flight, or '' where there is none to check
--   ARGV[4]  '1' when the task has just been started
--   ARGV[5]  a JSON list of commands to run with it; one that begins with a number calls that procedure: number, how many
--            of the next are its KEYS, KEYS, ARGV
-- Returns 'stored', 'superseded', or 'kept' when the task had succeeded already: nothing has been done then.
if ARGV[3] ~= '' and redis.call('HEXISTS', KEYS[2], ARGV[3]) == 0 then
    return 'superseded'
end
local success = '{"status": "SUCCESS"'
if redis.call('GETRANGE', KEYS[1], 0, #success - 1) == success then
    return 'kept'
end
if ARGV[2] == '0' then
    redis.call('SET', KEYS[1], ARGV[1])
else
    redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
if ARGV[4] == '1' and ARGV[3] ~= '' then
    redis.call('HSET', KEYS[3], ARGV[3], '1')
end
for _, command in ipairs(cjson.decode(ARGV[5])) do
    local procedure = procedures[command[1]]
    if procedure then
        local keys, args = {}, {}
        for i = 3, #command do
            if i < 3 + command[2] then keys[#keys + 1] = command[i] else args[#args + 1] = command[i] end
        end
        procedure(keys, args)
    else
        redis.call(unpack(command))
    end
end
return 'stored'
