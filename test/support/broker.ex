defmodule Barytherium.Broker do
  @moduledoc """
  Starts a real broker on a free loopback port, in a directory of its own, and stops it by its pid.
  """

  alias Barytherium.Certificates

  @enforce_keys [:kind, :port, :tls, :web, :pid, :directory, :environment]
  defstruct [:kind, :port, :tls, :web, :pid, :directory, :environment]

  # RabbitMQ takes about 12 s.
  @start_timeout 90_000

  @doc """
  The users of each broker, with their passcodes: one whose passcode has every printable character, a
  blank, and characters that are not ASCII; and one whose passcode reads like escapes.
  """
  def users do
    printable = for character <- ?!..?~, into: "", do: <<character>>

    [
      {"guest", "guest"},
      {"odd:one", printable <> " żółć 日本"},
      {"back\\slash", "a\\nb\\cc\\rd\\te\\\\f\\"}
    ]
  end

  @doc "Starts a broker of `kind`, one of the modules `Barytherium.Brokers.*`."
  def start!(kind), do: kind |> prepare!() |> start_again!()

  @doc "The broker of `kind` that tests share. The first who wants it starts it, and it ends with the tests."
  def shared!(kind) do
    case Agent.start(fn -> start_in_background(kind) end, name: kind, timeout: :infinity) do
      {:ok, agent} -> ExUnit.after_suite(fn _results -> agent |> Agent.get(& &1) |> stop() end)
      {:error, {:already_started, _agent}} -> :ok
      {:error, {reason, stacktrace}} -> reraise reason, stacktrace
    end

    Agent.get(kind, & &1, :infinity)
  end

  # Its output goes to a process that takes it, and does not end with a module.
  defp start_in_background(kind) do
    agent = self()

    spawn_link(fn ->
      send(agent, {:broker, start!(kind)})
      take_output()
    end)

    receive do: ({:broker, broker} -> broker)
  end

  defp take_output do
    receive do
      _output -> take_output()
    end
  end

  @doc "The files and the environment of a broker. `start_again!/1` starts it."
  def prepare!(kind) do
    directory = Barytherium.Directory.path()
    File.mkdir_p!(directory)
    port = free_port()
    # The port and the certificates of a listener with TLS, see `Certificates.write!/2`.
    files = Certificates.make(["localhost", {127, 0, 0, 1}]) |> Certificates.write!(directory)
    tls = Map.put(files, :port, free_port())
    # The ports of its WebSockets, without TLS and with it; nil if it has none here.
    web = if kind.web?(), do: %{port: free_port(), tls_port: free_port()}
    environment = kind.prepare!(directory, port, tls, web)

    %__MODULE__{
      kind: kind,
      port: port,
      tls: tls,
      web: web,
      pid: nil,
      directory: directory,
      environment: environment
    }
  end

  @doc "Starts a broker that has ended, with what it has stored, on the same port."
  def start_again!(%__MODULE__{kind: kind, directory: directory} = broker) do
    {command, args} = kind.command(directory)
    opened = open(command, args, broker.environment)
    # They are opened one after the other.
    web = if broker.web, do: Map.values(broker.web), else: []
    for port <- [broker.port, broker.tls.port | web], do: await_port(opened, port, deadline())
    await_login(broker.port, deadline())
    %{broker | pid: kind.pid(opened, directory)}
  end

  @doc "Kills the broker at once, as a machine that fails would."
  def kill(broker), do: end!(broker, "KILL")

  @doc "Ends the broker with a signal: `TERM` for an orderly end."
  def end!(broker, signal) do
    signal(broker, signal)
    await_end(broker)
  end

  # A signal is delivered after `kill` has returned.
  defp await_end(broker) do
    # Its program is gone from there before its ports are closed.
    if File.exists?("/proc/#{broker.pid}") do
      Process.sleep(10)
      await_end(broker)
    end
  end

  @doc "Kills the broker and removes everything that it left."
  def stop(broker) do
    signal(broker, "CONT")
    signal(broker, "KILL")
    broker.kind.cleanup(broker)
    File.rm_rf!(broker.directory)
  end

  @doc "Sends a signal to the broker's process. Does nothing if the broker has ended."
  def signal(broker, name) do
    System.cmd("kill", ["-#{name}", broker.pid], stderr_to_stdout: true)
    :ok
  end

  @doc "Says what the log of a broker ends with, if the broker has ended, or has closed a port."
  def report_end(broker) do
    web = if broker.web, do: Map.values(broker.web), else: []
    silent = Enum.reject([broker.port, broker.tls.port | web], &listens?/1)

    if silent != [] do
      logs = Path.wildcard(Path.join(broker.directory, "{log,data}/*.log"))
      ends = for log <- logs, do: "\n#{log}:\n" <> last_lines(log)
      IO.puts(:stderr, "#{inspect(broker.kind)} does not listen on #{inspect(silent)}#{ends}")
    end
  end

  defp listens?(port) do
    case :gen_tcp.connect({127, 0, 0, 1}, port, []) do
      {:ok, socket} -> :gen_tcp.close(socket) == :ok
      {:error, _refused} -> false
    end
  end

  defp last_lines(log),
    do: log |> File.read!() |> String.split("\n") |> Enum.take(-40) |> Enum.join("\n")

  @doc "Publishes with stomp.py, see `publish.py`. Returns its output."
  def publish!(broker, script_args) do
    script = Path.join(__DIR__, "publish.py")
    args = [script, to_string(broker.port) | Enum.map(script_args, &to_string/1)]
    {output, 0} = System.cmd("/usr/bin/python3", args, stderr_to_stdout: true)
    output
  end

  # Below the ports that the system gives to connections, and to listeners that let it choose: a broker binds its ports
  # seconds after they are chosen.
  @first_port 10_000
  @ports 22_000

  @doc "A port that nothing has, and that no other call returns soon."
  def free_port do
    # Several VMs run tests at the same time, and begin at different ports.
    number =
      String.to_integer(System.pid()) * 1_000 + System.unique_integer([:positive, :monotonic])

    port = @first_port + rem(number, @ports)

    case :gen_tcp.listen(port, ip: {127, 0, 0, 1}) do
      {:ok, listener} ->
        :gen_tcp.close(listener)
        port

      {:error, :eaddrinuse} ->
        free_port()
    end
  end

  defp open(command, args, environment) do
    environment = for {name, value} <- environment, do: {to_charlist(name), to_charlist(value)}
    options = [:binary, :exit_status, :stderr_to_stdout, args: args, env: environment]
    Port.open({:spawn_executable, to_charlist(command)}, options)
  end

  defp await_port(opened, port, deadline) do
    case :gen_tcp.connect({127, 0, 0, 1}, port, []) do
      {:ok, socket} ->
        :gen_tcp.close(socket)

      {:error, _not_yet} ->
        receive do
          {^opened, {:exit_status, status}} -> raise "the broker ended with status #{status}"
        after
          200 -> :ok
        end

        if System.monotonic_time(:millisecond) > deadline, do: raise("the broker did not start")
        await_port(opened, port, deadline)
    end
  end

  # RabbitMQ refuses everybody for a while after that.
  defp await_login(port, deadline) do
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false])
    connect = "CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0"
    :ok = :gen_tcp.send(socket, connect)
    answer = :gen_tcp.recv(socket, 0, 10_000)
    :gen_tcp.close(socket)

    unless match?({:ok, "CONNECTED" <> _rest}, answer) do
      if System.monotonic_time(:millisecond) > deadline, do: raise("the broker did not start")
      Process.sleep(100)
      await_login(port, deadline)
    end
  end

  defp deadline, do: System.monotonic_time(:millisecond) + @start_timeout
end
