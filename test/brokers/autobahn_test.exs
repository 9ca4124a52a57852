defmodule Barytherium.AutobahnTest do
  @moduledoc """
  The test suite of Autobahn, which `script/websocket` installs. It wants each message back in a message. STOMP has no use
  for the bounds of messages, so that the native side does not tell them. This test finds them itself, and sends back
  what the native side has made of the bytes.
  """
  use ExUnit.Case, async: true

  alias Barytherium.{Broker, Connection, Directory, Native}

  @moduletag :websocket
  @moduletag timeout: 1_200_000

  @python "_build/websocket/autobahn/python/bin/python"

  setup do
    File.exists?(@python) || raise "Autobahn is not installed: run script/websocket autobahn"
    directory = Directory.make!()
    port = Broker.free_port()
    args = ["-W", "ignore", "test/support/fuzzing_server.py", to_string(port), directory]
    options = [:binary, :exit_status, :stderr_to_stdout, args: args]
    server = Port.open({:spawn_executable, Path.expand(@python)}, options)
    {:os_pid, pid} = Port.info(server, :os_pid)
    on_exit(fn -> System.cmd("kill", ["-KILL", to_string(pid)]) end)
    await(port, 200)
    %{port: port, reports: Path.join(directory, "reports")}
  end

  defp await(port, attempts) do
    case :gen_tcp.connect({127, 0, 0, 1}, port, []) do
      {:ok, socket} ->
        :gen_tcp.close(socket)

      {:error, _not_yet} when attempts > 0 ->
        Process.sleep(100)
        await(port, attempts - 1)
    end
  end

  test "all cases but those about UTF-8 in text", %{port: port, reports: reports} do
    {:ok, socket} = open(port, "/getCaseCount")
    {:ok, count} = Connection.recv(socket, 0, 5_000)
    Connection.close(socket)
    for n <- 1..String.to_integer(count), do: run(port, n)
    {:ok, socket} = open(port, "/updateReports?agent=barytherium")
    {:error, :closed} = Connection.recv(socket, 0, 60_000)

    results = results(reports)

    IO.inspect(
      for(
        {id, r, c} <- results,
        r not in ["OK", "NON-STRICT", "INFORMATIONAL"] or c not in ["OK", "INFORMATIONAL"],
        do: {id, r, c}
      ),
      limit: :infinity
    )

    IO.inspect(Enum.frequencies_by(results, &elem(&1, 1)))
  end

  defp open(port, path), do: Connection.connect("127.0.0.1", port, websocket: path)

  defp run(port, n) do
    {:ok, connection} = open(port, "/runCase?case=#{n}&agent=barytherium")
    echo(connection, {"", ""})
    Connection.close(connection)
  end

  # The bytes of a frame, as far as they have come, and the payload of the message so far.
  defp echo(%{socket: socket} = connection, state) do
    case :gen_tcp.recv(socket, 0, 10_000) do
      {:ok, bytes} ->
        with({:ok, state} <- take(connection, bytes, state), do: echo(connection, state))

      {:error, _closed} ->
        :ok
    end
  end

  defp take(_connection, "", state), do: {:ok, state}

  defp take(connection, bytes, {head, payload}) do
    missing = missing(head)
    {part, rest} = :erlang.split_binary(bytes, min(missing, byte_size(bytes)))
    head = head <> part

    with {:ok, payload} <- decode(connection, part, payload) do
      if missing(head) == 0,
        do: take(connection, rest, {"", answer(connection, head, payload)}),
        else: take(connection, rest, {head, payload})
    end
  end

  # How many bytes of a frame are missing, as far as its head tells.
  defp missing(<<_first, 0::1, 127::7, length::64, _rest::binary>> = read),
    do: 10 + length - byte_size(read)

  defp missing(<<_first, 0::1, 126::7, length::16, _rest::binary>> = read),
    do: 4 + length - byte_size(read)

  defp missing(<<_first, 0::1, length::7, _rest::binary>> = read) when length < 126,
    do: 2 + length - byte_size(read)

  defp missing(_head), do: 1

  defp decode(connection, bytes, payload) do
    read = Native.websocket_read(connection.websocket, bytes, 0)
    # What reading owes is sent at once.
    Connection.send_owed(connection)

    case read do
      {:ok, more} -> {:ok, payload <> more}
      :more -> {:ok, payload}
      _closed -> :closed
    end
  end

  defp answer(connection, <<fin::1, _reserved::3, opcode::4, _rest::binary>>, payload) do
    if fin == 1 and opcode < 8 do
      Connection.send(connection, payload)
      ""
    else
      payload
    end
  end

  # `{case, behaviour, behaviour at the close}` of each case.
  defp results(reports) do
    index = reports |> Path.join("index.json") |> File.read!()

    for [_all, id, fields] <- Regex.scan(~r/"([\d.]+)": \{([^}]*)\}/, index) do
      [behaviour, at_close] =
        for name <- ["behavior", "behaviorClose"] do
          [_all, value] = Regex.run(~r/"#{name}": "([^"]*)"/, fields)
          value
        end

      {id, behaviour, at_close}
    end
  end
end
