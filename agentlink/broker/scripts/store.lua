-- Store a task's state or result and what is recorded with it, unless another worker has the task by now.
--   KEYS[1]  the result     KEYS[2]  the worker's messages in flight
--   KEYS[3]  who is at the task: worker, slash, number of its message
--   ARGV[1]  the result     ARGV[2]  seconds it is kept, or '0'
--   ARGV[3]  the number of the task's message in flight, or '' where there is none to check    ARGV[4]  the worker
--   ARGV[5]  '1' when the task has just been started     ARGV[6]  the prefix of the keys of messages in flight
--   ARGV[7]  a JSON list of commands to run with it; one that begins with a number calls that procedure: number, how many
--            of the next are its KEYS, KEYS, ARGV
--   ARGV[8]  the same for procedures that are asked first: what one returns is the outcome, and nothing else is done
-- Returns 'stored'; or what a procedure that was asked has returned; or, when nothing has been done, 'superseded' (the worker's lease is over), 'claimed' (the same task,
-- delivered twice, is being run elsewhere) or 'kept' (it had succeeded already, or a failure told from outside came
-- after its own).
local function call(command)
    local keys, args = {}, {}
    for i = 3, #command do
        if i < 3 + command[2] then keys[#keys + 1] = command[i] else args[#args + 1] = command[i] end
    end
    return procedures[command[1]](keys, args)
end

local flying = ARGV[3] ~= ''
if flying and redis.call('HEXISTS', KEYS[2], ARGV[3]) == 0 then
    return 'superseded'
end
for _, command in ipairs(cjson.decode(ARGV[8])) do
    local outcome = call(command)
    if outcome then return outcome end
end
local status = string.match(redis.call('GETRANGE', KEYS[1], 0, 40), '^{"status": "(%u+)"')
local new_status = string.match(string.sub(ARGV[1], 1, 40), '^{"status": "(%u+)"')
if status == 'SUCCESS' or (status == 'FAILURE' and new_status == 'FAILURE' and not flying) then
    return 'kept'
end
if flying then
    local mine = ARGV[4] .. '/' .. ARGV[3]
    local claim = redis.call('GET', KEYS[3])
    if ARGV[5] == '1' then
        if claim and claim ~= mine then
            local worker, number = string.match(claim, '^(.*)/(%d+)$')
            if redis.call('HEXISTS', ARGV[6] .. worker, number) == 1 then
                return 'claimed'
            end
        end
        redis.call('SET', KEYS[3], mine, 'EX', 604800)
    elseif claim == mine then
        redis.call('DEL', KEYS[3])
    end
end
if ARGV[2] == '0' then
    redis.call('SET', KEYS[1], ARGV[1])
else
    redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
redis.call('PUBLISH', KEYS[1], ARGV[1])
for _, command in ipairs(cjson.decode(ARGV[7])) do
    if procedures[command[1]] then
        call(command)
    else
        redis.call(unpack(command))
    end
end
return 'stored'
