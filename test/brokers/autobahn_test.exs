defmodule Barytherium.AutobahnTest do
  @moduledoc """
  The test suite of Autobahn, which `script/websocket` installs. It wants each message back in a message. STOMP has no use
  for the bounds of messages, so that the native side does not tell them. This test finds them itself, and sends back
  what the native side has made of the bytes.
  """
  use ExUnit.Case, async: true

  alias Barytherium.{Broker, Connection, Directory, Native}
  alias Barytherium.Connection.{Http, WebSocket}

  @moduletag :websocket
  @moduletag timeout: 1_200_000

  @python "_build/websocket/autobahn/python/bin/python"

  # Here a message of bytes holds what is text, or nothing, and is sent back as text.
  @text ["1.2.1", "9.8.1"] ++ for(n <- 2..9, do: "9.4.#{n}")

  # Here text is not UTF-8. A client has to refuse it, and this one does not.
  @utf8 for(n <- [3, 4, 6, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], do: "6.#{n}.")

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

  test "all cases but those with text that is not UTF-8", %{port: port, reports: reports} do
    {:ok, socket} = open(port, "/getCaseCount")
    {:ok, count} = Connection.recv(socket, 0, 5_000)
    Connection.close(socket)
    for n <- 1..String.to_integer(count), do: run(port, n)
    {:ok, socket} = open(port, "/updateReports?agent=barytherium")
    {:error, :closed} = Connection.recv(socket, 0, 60_000)

    results = results(reports)
    assert length(results) == String.to_integer(count)

    for {id, behaviour, at_close} <- results,
        id not in @text and not String.starts_with?(id, @utf8) do
      assert {id, behaviour} in [{id, "OK"}, {id, "INFORMATIONAL"}]
      assert {id, at_close} in [{id, "OK"}, {id, "INFORMATIONAL"}]
    end
  end

  defp open(port, path), do: Connection.connect("127.0.0.1", port, websocket: path)

  # The opening handshake is this test's own, because it has to see what comes behind it.
  defp run(port, n) do
    {:ok, socket} = :gen_tcp.connect({127, 0, 0, 1}, port, [:binary, active: false])

    headers = [
      {"host", "127.0.0.1:#{port}"},
      {"upgrade", "websocket"},
      {"connection", "upgrade"},
      {"sec-websocket-version", "13"},
      {"sec-websocket-key", Base.encode64("0123456789012345")}
    ]

    target = "GET /runCase?case=#{n}&agent=barytherium"
    {:ok, {101, _phrase, _headers, rest}} = Http.request(socket, target, headers, :infinity)
    connection = %WebSocket{socket: socket, websocket: Native.websocket_open("")}

    with {:ok, state} <- take(connection, rest, {"", 0, ""}), do: echo(connection, state)
    Connection.close(connection)
  end

  # The head of a frame as far as it has come, how many bytes of the frame have, and the payload of the message.
  defp echo(%{socket: socket} = connection, state) do
    with {:ok, bytes} <- :gen_tcp.recv(socket, 0, 10_000),
         {:ok, state} <- take(connection, bytes, state),
         do: echo(connection, state)
  end

  defp take(_connection, "", state), do: {:ok, state}

  defp take(connection, bytes, {head, read, payload}) do
    {part, rest} = :erlang.split_binary(bytes, min(size(head) - read, byte_size(bytes)))
    head = if byte_size(head) < 10, do: head <> part, else: head
    read = read + byte_size(part)

    with {:ok, payload} <- decode(connection, part, payload) do
      if read == size(head),
        do: take(connection, rest, {"", 0, answer(connection, head, payload)}),
        else: take(connection, rest, {head, read, payload})
    end
  end

  # The bytes of a frame; one more than there are, if its head does not tell.
  defp size(<<_first, 0::1, 127::7, length::64, _rest::binary>>), do: 10 + length
  defp size(<<_first, 0::1, 126::7, length::16, _rest::binary>>), do: 4 + length
  defp size(<<_first, 0::1, length::7, _rest::binary>>) when length < 126, do: 2 + length
  defp size(head), do: byte_size(head) + 1

  defp decode(connection, bytes, payload) do
    read = Native.websocket_read(connection.websocket, bytes, 0)
    # What reading owes is sent at once.
    Connection.flush(connection)

    case read do
      {:ok, more} -> {:ok, [payload, more]}
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
