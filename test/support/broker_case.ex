defmodule Barytherium.BrokerCase do
  @moduledoc """
  For tests against a real broker, which all modules share: `use` this with `broker: kind`. So each module has queues of
  its own. With `own: true` the module has a broker of its own. The test process is the callback process.
  """
  use ExUnit.CaseTemplate

  import Barytherium.ReceiverCase, only: [eventually: 2]
  import ExUnit.Assertions

  alias Barytherium.{Broker, Client, Frame, Network}
  alias Barytherium.Network.Sender

  using opts do
    kind = Keyword.fetch!(opts, :broker)

    quote do
      import Barytherium.BrokerCase
      alias Barytherium.{Broker, Frame}
      alias Barytherium.Network.Sender

      @moduletag real_broker: unquote(kind).name()
      @moduletag timeout: 180_000

      @broker_kind unquote(kind)

      defp module_broker(nil) do
        broker = Broker.shared!(@broker_kind)
        on_exit(fn -> Broker.report_end(broker) end)
        broker
      end

      defp module_broker(true) do
        broker = Broker.start!(@broker_kind)
        on_exit(fn -> Broker.stop(broker) end)
        broker
      end

      setup_all do
        if missing = @broker_kind.missing(), do: raise(missing)
        %{broker: module_broker(unquote(opts[:own]))}
      end
    end
  end

  @doc "Connects to the broker, or to the option `port`, and sends CONNECT. Returns the sender."
  def connect(broker, headers \\ [], opts \\ []) do
    {port, opts} = Keyword.pop(opts, :port, broker.port)
    {host, opts} = Keyword.pop(opts, :host, {127, 0, 0, 1})
    {:ok, network} = Network.start_link(self(), host, port, opts)
    Process.put(:network, network)
    assert_receive {:"$gen_cast", {:barytherium, :connect, {:ok, sender}}}
    own = [{"accept-version", "1.2"}, {"host", "/"}, {"login", "guest"}, {"passcode", "guest"}]
    names = for {name, _value} <- headers, do: name
    own = Enum.reject(own, fn {name, _value} -> name in names end)
    Sender.write(sender, [%Frame{command: :connect, headers: own ++ headers}])
    sender
  end

  @doc "The same, and waits for CONNECTED. Returns `{sender, connected_frame}`."
  def connected(broker, headers \\ [], opts \\ []) do
    sender = connect(broker, headers, opts)
    assert_receive {:"$gen_cast", {:barytherium, :frames, {[frame], ^sender}}}, 10_000
    assert %Frame{command: :connected} = frame
    {sender, frame}
  end

  @doc "A client that is connected, of the test's supervisor. `opts` have its URL."
  def connected_client(opts) do
    opts = opts ++ [backoff: {50, 200}]
    client = start_supervised!({Client, opts}, id: make_ref())
    eventually(fn -> Client.status(client).state == :connected end, 1_000)
    client
  end

  @doc "The network process of the last connection."
  def network, do: Process.get(:network)

  @doc "Sends a frame that asks for a receipt, and waits for it."
  def send_frame(sender, command, headers, body \\ "") do
    headers = headers ++ [{"receipt", "sent"}]
    Sender.write(sender, [%Frame{command: command, headers: headers, body: body}])
    receipt("sent")
  end

  @doc "Disconnects, and waits for the broker's close."
  def disconnect(sender) do
    send_frame(sender, :disconnect, [])
    assert_disconnect(:closed)
  end

  @doc "Subscribes, and waits for the receipt."
  def subscribe(sender, destination, headers \\ []) do
    own = [{"id", "0"}, {"destination", destination}, {"receipt", "subscribed"}]
    Sender.write(sender, [%Frame{command: :subscribe, headers: own ++ headers}])
    receipt("subscribed")
  end

  @doc "Waits for a receipt, which has to be the next frame."
  def receipt(id) do
    assert [%Frame{command: :receipt} = frame] = frames()
    assert header(frame, "receipt-id") == id
  end

  @doc "The next list of frames."
  def frames do
    assert_receive {:"$gen_cast", {:barytherium, :frames, {frames, _sender}}}, 20_000
    frames
  end

  @doc "The next `count` frames. Each list is passed to `handle` as it arrives."
  def frames(count, handle) do
    frames = frames()
    handle.(frames)

    case count - length(frames) do
      0 -> frames
      more when more > 0 -> frames ++ frames(more, handle)
    end
  end

  defdelegate header(frame, name), to: Frame

  @doc "Waits for the disconnect, and checks that nothing comes after it."
  def assert_disconnect(reasons) do
    assert_receive {:"$gen_cast", {:barytherium, :disconnect, reason}}, 10_000
    assert reason in List.wrap(reasons)
    refute_receive {:"$gen_cast", _message}, 100
  end
end
