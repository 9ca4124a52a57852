defmodule Barytherium.OpenSSLTest do
  @moduledoc "Native TLS with servers of OpenSSL: what `:ssl` cannot be made to send."
  use ExUnit.Case, async: true

  import ExUnit.CaptureLog

  alias Barytherium.{Certificates, Directory, Frame, Network, OpenSSL}
  alias Barytherium.Network.Sender

  @moduletag capture_log: true

  setup_all do
    %{files: Certificates.write!(Certificates.make(["localhost"]), Directory.make!())}
  end

  defp connect(port, files, headers \\ [], opts \\ []) do
    opts = [secure: true, cacertfile: files.cacertfile] ++ opts
    {:ok, network} = Network.start_link(self(), "localhost", port, opts)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    Sender.write(sender, [%Frame{command: :connect, headers: headers}])
    {network, sender}
  end

  defp assert_connected do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[%Frame{command: :connected}], _}}}
  end

  defp bodies(0), do: []

  defp bodies(count) do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}}
    Enum.map(frames, & &1.body) ++ bodies(count - length(frames))
  end

  defp assert_disconnect(reason) do
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, ^reason}}
  end

  # A server that has sent CONNECTED.
  defp s_server(files, arguments) do
    {server, port} = OpenSSL.s_server(files, arguments)
    {network, sender} = connect(port, files)
    OpenSSL.await_output(server, ~r/CONNECT\n\n/)
    OpenSSL.input(server, "CONNECTED\nversion:1.2\n\n\0")
    assert_connected()
    {server, network, sender}
  end

  test "the server updates its keys, and asks for new keys of the client", %{files: files} do
    {server, _network, sender} = s_server(files, ["-tls1_3"])

    for {command, body} <- [{"k", "one"}, {"K", "two"}, {"K", "three"}] do
      OpenSSL.input(server, command <> "\n")
      # When the server has read this, it has also read its command.
      write_ack(server, sender, "before #{body}")
      OpenSSL.input(server, "MESSAGE\n\n#{body}\0")
      assert bodies(1) == [body]
      write_ack(server, sender, "after #{body}")
    end
  end

  defp write_ack(server, sender, id) do
    Sender.write(sender, [%Frame{command: :ack, headers: [{"id", id}]}])
    OpenSSL.await_output(server, ~r/id:#{id}/)
  end

  test "renegotiation is refused (TLS 1.2)", %{files: files} do
    {server, _network, _sender} = s_server(files, ["-tls1_2"])
    OpenSSL.input(server, "MESSAGE\n\nbefore\0")
    assert bodies(1) == ["before"]
    OpenSSL.input(server, "r\n")
    OpenSSL.await_output(server, ~r/no renegotiation/i)
    # OpenSSL ends the connection then.
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, reason}}
    assert reason in [:handshake_failure, :closed]
  end

  for {argument, version} <- ["-tls1_2": :"tlsv1.2", "-tls1_3": :"tlsv1.3"] do
    test "a session is resumed: #{version}", %{files: files} do
      {server, port} = OpenSSL.s_server(files, [unquote("#{argument}")])
      # With settings of its own, the sessions of other servers are not offered to this one.
      opts = [versions: [unquote(version)]]

      for pattern <- [~r/CONNECT\n/, ~r/Reused session-id/] do
        {network, _sender} = connect(port, files, [], opts)
        OpenSSL.await_output(server, pattern)
        OpenSSL.input(server, "CONNECTED\nversion:1.2\n\n\0")
        assert_connected()
        GenServer.stop(network)
      end
    end
  end

  describe "a scripted server:" do
    setup %{files: files} do
      {server, port} = OpenSSL.scripted(files)
      %{server: server, port: port}
    end

    defp start(context, what) do
      {network, _sender} = connect(context.port, context.files, [{"do", what}])
      assert_connected()
      network
    end

    test "records of one byte", context do
      start(context, "bytes")
      assert bodies(1) == ["in bytes"]
    end

    test "records that are cut at each byte", context do
      start(context, "cut")
      # A record of TLS 1.3 has 22 bytes more than its data.
      last = byte_size("MESSAGE\n\n0000\0") + 22 - 1
      expected = for n <- 0..last, do: n |> to_string() |> String.pad_leading(4, "0")
      assert bodies(last + 1) == expected
    end

    # The peer is silent for 2 s, twice the agreed interval, only if no byte comes.
    test "a record that takes longer than the heart-beats", context do
      headers = [{"do", "slow"}, {"heart-beat", "0,1000"}]
      connect(context.port, context.files, headers)
      assert_connected()
      assert bodies(1) == ["slow"]
    end

    test "a body of 10 MB", context do
      start(context, "large")
      assert bodies(1) == [String.duplicate("0123456789", 1_000_000)]
    end

    test "an alert that is not encrypted is no alert, after the frames before it", context do
      start(context, "alert")
      assert bodies(1) == ["last"]
      assert_disconnect(:bad_record_mac)
    end

    test "a damaged record ends the connection, and the server is told why", context do
      start(context, "damage")
      assert bodies(1) == ["last"]
      assert_disconnect(:bad_record_mac)
      OpenSSL.await_output(context.server, ~r/bad record mac/i)
    end

    test "an end without close_notify is closed, and logged as truncated", context do
      log =
        capture_log(fn ->
          start(context, "truncate")
          assert bodies(1) == ["last"]
          assert_disconnect(:closed)
        end)

      assert log =~ "truncated"
    end
  end
end
