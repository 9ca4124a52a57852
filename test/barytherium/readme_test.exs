defmodule Barytherium.ReadmeTest do
  @moduledoc "Checks that what the README shows works."
  use ExUnit.Case, async: false

  import Barytherium.ReceiverCase, only: [eventually: 1, eventually: 2]
  import ExUnit.CaptureLog

  @moduletag capture_log: true

  alias Barytherium.Network.Options
  alias Barytherium.{Certificates, Frame, TestBroker}

  @readme File.read!("README.md")

  # `UPDATE_GUIDES=1 mix test` updates the table.
  test "the table of options is the one that the schema makes" do
    [before, rest] = String.split(@readme, "<!-- options -->\n")
    [table, rest] = String.split(rest, "<!-- end of options -->")

    if System.get_env("UPDATE_GUIDES") do
      parts = [before, "<!-- options -->\n", Options.table(), "<!-- end of options -->", rest]
      File.write!("README.md", parts)
    else
      assert table == Options.table()
    end
  end

  defp blocks, do: Regex.scan(~r/```elixir\n(.*?)```/s, @readme, capture: :all_but_first)

  defp block(text) do
    [[block]] = Enum.filter(blocks(), fn [block] -> block =~ text end)
    block
  end

  test "the consumer and the client work under a supervisor, and survive a restart of the broker" do
    Code.eval_string(block("defmodule Orders"))
    broker = start_supervised!(TestBroker, id: :first)
    port = TestBroker.port(broker)
    {children, _binding} = "children = " |> block() |> at(port) |> Code.eval_string()

    # Tells this process of each message that the consumer gets.
    :erlang.trace(:new_processes, true, [:call])
    :erlang.trace_pattern({Orders, :handle_message, 2}, true)

    log =
      capture_log(fn ->
        {:ok, supervisor} = Supervisor.start_link(children, strategy: :one_for_one)
        eventually(fn -> subscribed?(broker) end)
        Code.eval_string(block("Client.publish"))
        assert_handled()
        stop_supervised!(:first)
        broker = start_supervised!({TestBroker, port: port}, id: :second)
        eventually(fn -> subscribed?(broker) end, 1_000)
        TestBroker.publish(broker, "/queue/a", :zlib.gzip("much longer than before"))
        assert_handled()
        Supervisor.stop(supervisor)
      end)

    assert log =~ "got 5 bytes"
    assert log =~ "got 23 bytes"
    # Erlang's cache of PEM files ends when it finds that another test has removed one.
    refute log =~ ~r/(?<!:ssl_pem_cache) terminating/
    refute log =~ "guest"
  after
    :erlang.trace(:new_processes, false, [:call])
    :code.purge(Orders)
    :code.delete(Orders)
  end

  defp at(block, port), do: String.replace(block, "61613", to_string(port))
  # A message that has not arrived when the broker or the consumer stops is not handled.
  defp assert_handled,
    do: assert_receive({:trace, _consumer, :call, {Orders, :handle_message, _arguments}})

  defp subscribed?(broker), do: :sys.get_state(broker).subscriptions != []

  test "the other examples work" do
    [[parse_error]] = Enum.filter(blocks(), fn [block] -> block =~ "ParseError{rule" end)
    assert {{:error, %Barytherium.ParseError{}}, _bindings} = Code.eval_string(parse_error)
    assert %Frame{command: :ack} = Frame.ack(%Frame{command: :message, headers: [{"ack", "1"}]})
  end

  describe "mix barytherium.listen" do
    import ExUnit.CaptureIO

    defp listen(args) do
      Mix.Task.reenable("barytherium.listen")
      capture_io(fn -> Mix.Tasks.Barytherium.Listen.run(args) end)
    end

    test "shows a feed of its own" do
      output = listen(~w(--seconds 2 --rate 1000 --size 10))
      assert output =~ "A feed in this VM: 1000 frames/s of 10"
      assert output =~ "command: :connected"
      assert output =~ "frames/s"
      assert [_all, frames] = Regex.run(~r/In all (\d+) frames/, output)
      assert String.to_integer(frames) > 500
    end

    test "acknowledges a broker's messages only with --ack" do
      for {args, acknowledged} <- [{[], false}, {["--ack"], true}] do
        listener = Barytherium.Peer.listen(:tcp)
        port = Barytherium.Peer.port(listener)
        peer = Task.async(fn -> peer(listener) end)

        output =
          listen(["stomp://me:hunter2@127.0.0.1:#{port}/queue/a", "--seconds", "1"] ++ args)

        refute output =~ "hunter2"
        assert output =~ "In all 1 frames"
        written = Task.await(peer)
        assert written =~ "passcode:hunter2"
        assert written =~ "ACK\nid:7" == acknowledged
        assert written =~ "DISCONNECT\n"
      end
    end

    # Answers as a broker does, and returns what it received.
    defp peer(listener) do
      peer = Barytherium.Peer.accept(listener)
      {:ok, connect} = Barytherium.Peer.recv(peer)
      Barytherium.Peer.send(peer, "CONNECTED\nversion:1.2\n\n\0")
      {:ok, subscribe} = Barytherium.Peer.recv(peer)
      Barytherium.Peer.send(peer, "MESSAGE\nack:7\n\nhello\0")
      connect <> subscribe <> rest(peer, "")
    end

    defp rest(peer, read) do
      if read =~ "DISCONNECT" do
        Barytherium.Peer.close(peer)
        read
      else
        {:ok, more} = Barytherium.Connection.recv(peer, 0, 5_000)
        rest(peer, read <> more)
      end
    end

    test "does not trust an unknown certificate unless told to" do
      directory =
        Path.join(System.tmp_dir!(), "barytherium_#{System.unique_integer([:positive])}")

      File.mkdir_p!(directory)
      on_exit(fn -> File.rm_rf!(directory) end)
      certificates = Certificates.make(["localhost"])
      %{cacertfile: cacertfile} = Certificates.write!(certificates, directory)

      for {args, trusted} <- [
            {[], false},
            {["--cacertfile", cacertfile], true},
            {["--insecure"], true}
          ] do
        mode = [mode: :binary, active: false, ip: {127, 0, 0, 1}, log_level: :none]
        {:ok, listener} = :ssl.listen(0, mode ++ certificates.server)
        {:ok, {_address, port}} = :ssl.sockname(listener)
        peer = Task.async(fn -> trusted && peer(listener) end)
        url = "stomp+ssl://me:hunter2@localhost:#{port}/queue/a"

        if trusted do
          assert listen([url, "--seconds", "1"] ++ args) =~ "In all 1 frames"
        else
          accepting = Task.async(fn -> handshake(listener) end)
          assert_raise Mix.Error, ~r/unknown_ca/, fn -> listen([url]) end
          Task.await(accepting)
        end

        Task.await(peer)
      end
    end

    defp handshake(listener) do
      {:ok, socket} = :ssl.transport_accept(listener)
      :ssl.handshake(socket, 5_000)
    end

    test "reports a malformed URL, and a refused connection" do
      assert_raise Mix.Error, ~r/not a URL of the form/, fn -> listen(["http://localhost"]) end
      listener = Barytherium.Peer.listen(:tcp)
      port = Barytherium.Peer.port(listener)
      Barytherium.Peer.close(listener)
      url = "stomp://127.0.0.1:#{port}/queue/a"
      assert_raise Mix.Error, ~r/no connection to .*econnrefused/, fn -> listen([url]) end
    end
  end
end
