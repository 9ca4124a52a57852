defmodule Mix.Tasks.Barytherium.TailTest do
  # What only an operating system process has: exit statuses, pipes, signals and a terminal.
  use ExUnit.Case, async: false

  alias Barytherium.{Directory, TestBroker}

  @moduletag :programs

  @mix System.find_executable("mix")

  setup do
    {:ok, broker} = TestBroker.start_link(rate: 50, body: "hello")
    %{broker: broker, url: "stomp://127.0.0.1:#{TestBroker.port(broker)}/topic/a"}
  end

  # A command that hangs must not outlive the test.
  defp sh(command) do
    System.cmd("timeout", ["60", "sh", "-c", command], env: env(), stderr_to_stdout: true)
  end

  defp env, do: [{"MIX_ENV", "test"}, {"TERM", "xterm"}, {"STOMP_PASSCODE", nil}]

  test "exit statuses", %{url: url} do
    assert {output, 0} = sh("mix barytherium.tail #{url} --count 2")
    assert output =~ "==> /topic/a <=="
    assert output =~ "2 messages"
    # A pipe gets neither colours nor rates.
    refute output =~ "\e"
    refute output =~ "Ctrl-C"

    assert {output, 0} = sh("mix barytherium.listen #{url} --count 2 --format json 2>&-")
    assert [~s({"time":) <> _rest, ~s({"time":) <> _more] = String.split(output, "\n", trim: true)

    assert {output, 1} = sh("mix barytherium.tail stomp://127.0.0.1:1/queue/a")
    assert output =~ ~r/Error: cannot connect to .*: connection refused \(econnrefused\)/
    assert {output, 2} = sh("mix barytherium.tail stomp://127.0.0.1")
    assert output =~ "See mix barytherium.tail --help"
  end

  test "ends when nobody reads the output any more", %{url: url} do
    {output, 0} = sh("mix barytherium.tail #{url} --format json | head -n 1")
    assert output =~ ~s("body":"hello"})
    assert output =~ "of bodies in"
    refute output =~ "** ("
  end

  test "ends when nobody reads any more and nothing comes" do
    idle = start_supervised!(TestBroker)
    url = "stomp://127.0.0.1:#{TestBroker.port(idle)}/topic/a"
    running = Task.async(fn -> sh("mix barytherium.tail #{url} --format json | head -n 1") end)
    :ok = TestBroker.await_subscription(idle, "/topic/a", 30_000)
    :ok = TestBroker.publish(idle, "/topic/a", "the only one")
    {output, 0} = Task.await(running, 60_000)
    assert output =~ ~s("body":"the only one"})
    assert output =~ "1 message, "
    refute output =~ "** ("
  end

  test "SIGTERM unsubscribes and says what came", %{url: url} do
    port = start("sh", ["-c", "echo pid $$; exec mix barytherium.tail #{url} 2>&1"])
    output = read_until(port, "", ~r/hello\n/)
    [_all, pid] = Regex.run(~r/pid (\d+)/, output)
    {_output, 0} = System.cmd("kill", [pid])
    {output, status} = read_to_end(port, output)
    assert output =~ "of bodies in"
    assert status == 143
  end

  test "SIGTERM ends a benchmark in order, with what was measured" do
    command = "echo pid $$; exec mix barytherium.bench --seconds 60 --rate 500 2>&1"
    port = start("sh", ["-c", command])
    output = read_until(port, "", ~r/Measuring/)
    [_all, pid] = Regex.run(~r/pid (\d+)/, output)
    {_output, 0} = System.cmd("kill", [pid])
    assert {output, 143} = read_to_end(port, output)
    assert output =~ ~r/published .*\nconsumed .*\n/
  end

  test "a signal that is sent twice at once, as `timeout` does, is one", %{url: url} do
    command = "timeout --signal TERM 6 mix barytherium.tail #{url}"
    assert {output, 124} = sh(command)
    assert output =~ "of bodies in"
  end

  test "the release runs from its archive, without Mix and Erlang", %{
    url: url
  } do
    directory = Directory.make!()
    release = Path.join(directory, "release")
    assert {_output, 0} = sh("mix release stomp_tail --overwrite --quiet --path #{release}")
    moved = Path.join(directory, "moved")
    File.mkdir!(moved)
    assert {_output, 0} = sh("tar xzf #{release}/stomp_tail-*.tar.gz -C #{moved}")
    File.rm_rf!(release)
    link = Path.join(directory, "link")
    File.ln_s!(Path.join(moved, "stomp-tail"), link)

    # Only these tools are found.
    path = Path.join(directory, "bin")
    File.mkdir!(path)

    for tool <- ~w(sh readlink dirname basename sed grep cat env uname) do
      File.ln_s!(System.find_executable(tool), Path.join(path, tool))
    end

    tail = "env -i PATH=#{path} #{link}"
    assert {output, 0} = sh("#{tail} #{url} --count 1 --format json")
    assert output =~ ~s("body":"hello"})
    assert {output, 2} = sh("#{tail} 'a b' --frobnicate")
    assert output =~ "See stomp tail --help"

    stomp = "env -i PATH=#{path} #{moved}/stomp"
    assert {output, 0} = sh("#{stomp} send #{url} sent")
    assert output =~ "has confirmed 1 message, 4 B"
    assert {output, 0} = sh("#{stomp} bench --seconds 1 --rate 10")
    assert output =~ ~r/^latency +p50/m
    assert {usage, 0} = sh("#{stomp} --help")
    assert usage =~ "stomp bench [URL]"
    assert {^usage, 2} = sh("#{stomp} frobnicate")
  end

  describe "on a terminal" do
    # `script` gives the command a terminal, and passes on what is typed.
    @script System.find_executable("script")
    @describetag skip: @script == nil

    defp type(port, text), do: Port.command(port, text)

    # With `exec`, because the shell would get the signal of Ctrl-C too.
    defp terminal(command),
      do: start(@script, ["--quiet", "--return", "--command", command, "/dev/null"])

    test "Ctrl-C unsubscribes and says what came", %{url: url} do
      port = terminal("exec #{@mix} barytherium.tail #{url}")
      output = read_until(port, "", ~r/Ctrl-C ends/)
      assert output =~ "\e[36m==> /topic/a"
      type(port, <<3>>)
      {output, status} = read_to_end(port, output)
      assert output =~ "of bodies in"
      assert status == 130
    end

    test "Ctrl-C says what was sent", %{url: url} do
      port = terminal("exec #{@mix} barytherium.send #{url} x --count 100000 --rate 100")
      output = read_until(port, "", ~r/\[\.+\] \d+ messages/)
      type(port, <<3>>)
      {output, status} = read_to_end(port, output)
      assert output =~ "Barytherium.TestBroker has confirmed"
      assert status == 130
    end

    test "Ctrl-C ends a measurement", %{broker: broker, url: url} do
      port = terminal("exec #{@mix} barytherium.bench #{url} --seconds 60 --rate 10")
      TestBroker.await_subscription(broker, "/topic/a-1", 30_000)
      type(port, <<3>>)
      assert {_output, 130} = read_to_end(port, "")
    end

    test "asks for the password, and does not show it", %{url: url} do
      url = String.replace(url, "//", "//me@")
      port = terminal("exec #{@mix} barytherium.tail #{url} --count 1")
      output = read_until(port, "", ~r/Password of me: /)
      type(port, "hunter2\n")
      {output, status} = read_to_end(port, output)
      assert output =~ "hello"
      refute output =~ "hunter2"
      assert status == 0
    end
  end

  defp start(program, args) do
    env = for {name, value} <- env(), do: {to_charlist(name), value != nil && to_charlist(value)}
    program = System.find_executable(program)
    Port.open({:spawn_executable, program}, [:binary, :exit_status, args: args, env: env])
  end

  defp read_until(port, read, pattern) do
    if read =~ pattern do
      read
    else
      receive do
        {^port, {:data, data}} -> read_until(port, read <> data, pattern)
        {^port, {:exit_status, status}} -> flunk("it ended with #{status}:\n#{read}")
      after
        30_000 -> flunk("#{inspect(pattern)} never came:\n#{read}")
      end
    end
  end

  defp read_to_end(port, read) do
    receive do
      {^port, {:data, data}} -> read_to_end(port, read <> data)
      {^port, {:exit_status, status}} -> {read, status}
    after
      30_000 -> flunk("it does not end:\n#{read}")
    end
  end
end
