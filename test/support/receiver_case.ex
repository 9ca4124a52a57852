defmodule Barytherium.ReceiverCase do
  @moduledoc """
  For tests of the receive loop. The test process is both listener and network process, so it gets
  everything that is sent to either.
  """
  use ExUnit.CaseTemplate

  import ExUnit.Assertions

  alias Barytherium.{Frame, Peer}
  alias Barytherium.Network.Receiver

  @connected "CONNECTED\nversion:1.2\n\n\0"

  using do
    quote do
      import Barytherium.ReceiverCase
      alias Barytherium.{Connection, Frame, Peer}
      alias Barytherium.Network.Receiver
    end
  end

  def connected_bytes, do: @connected

  @doc "The argument of `Receiver.loop/1`, with `test` as listener, network and sender process."
  def loop_state(socket, test) do
    %{
      socket: socket,
      listener_pid: test,
      network_pid: test,
      sender_pid: test,
      parse_state: nil,
      hb_recv: nil
    }
  end

  @doc "The options of `Native.open/6` for a connection without TLS and heart-beats, with `changes`."
  def native_options(high_water_mark, changes \\ %{}) do
    Map.merge(
      %{
        first_frame_timeout: 5_000,
        heartbeat_receive_allowance: nil,
        hb_recv: 0,
        last_receipt: nil,
        routes: nil,
        tls: nil,
        websocket: nil,
        show_econnreset: false,
        inflate: false,
        max_inflated: 0,
        high_water_mark: high_water_mark
      },
      changes
    )
  end

  @doc "A route to `recipients`, as `Native.put_route/3` takes it, with `changes`."
  def route(recipients, origin, changes \\ []) do
    Map.merge(
      %{
        recipients: recipients,
        key: nil,
        origin: origin,
        noted: nil,
        inflate: nil,
        feed: nil
      },
      Map.new(changes)
    )
  end

  @doc "A receiver and its peer: `{receiver, peer, socket}`."
  def start_receiver(transport \\ :tcp, opts \\ []) do
    {socket, peer} = Peer.pair(transport)
    {:ok, receiver} = Receiver.start_link(socket, self(), self(), self(), opts)
    {receiver, peer, socket}
  end

  @doc "The same, after CONNECTED was received and `hb_recv` was agreed."
  def start_connected(transport \\ :tcp, opts \\ [], hb_recv \\ 0) do
    {receiver, peer, socket} = start_receiver(transport, opts)
    Peer.send(peer, @connected)
    assert [%Frame{command: :connected}] = receive_frames()
    reply_heart_beats(hb_recv)
    {receiver, peer, socket}
  end

  @doc "Answers the call that the receiver makes after CONNECTED. Returns the frame."
  def reply_heart_beats(hb_recv) do
    assert_receive {:"$gen_call", from, {:connected_frame, %Frame{command: :connected} = frame}}
    GenServer.reply(from, {0, hb_recv})
    frame
  end

  @doc "The next list of frames."
  def receive_frames do
    sender = self()
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[_ | _] = frames, ^sender}}}
    frames
  end

  @doc "The next `count` frames, in however many lists."
  def receive_frames(count) do
    frames = receive_frames()

    case count - length(frames) do
      0 -> frames
      more when more > 0 -> frames ++ receive_frames(more)
    end
  end

  @doc "Waits for the disconnect and for the receiver's end, and checks that nothing else came."
  def assert_disconnect(reason, receiver) do
    monitor = Process.monitor(receiver)
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, ^reason}}
    assert_receive {:DOWN, ^monitor, :process, ^receiver, end_reason}
    assert end_reason in [:normal, :noproc]
    refute_received {:"$gen_cast", _message}
  end

  @doc "The number of open descriptors of this VM."
  def descriptors, do: "/proc/self/fd" |> File.ls!() |> length()

  @doc "Polls until `condition` returns true. For what no message announces."
  def eventually(condition, attempts \\ 200) do
    case {condition.(), attempts} do
      {true, _attempts} ->
        :ok

      {other, 0} ->
        flunk("the condition never became true, it returned #{inspect(other)}")

      {_other, attempts} ->
        Process.sleep(10)
        eventually(condition, attempts - 1)
    end
  end
end
