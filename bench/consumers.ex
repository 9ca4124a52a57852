defmodule Bench.Consumers do
  @moduledoc """
  The same work in a `Barytherium.Consumer` and in a callback process of `Barytherium.Network` that does
  nothing else: each message is counted and acknowledged, or each list of messages is, by its last one.
  """

  alias Barytherium.{Client, Consumer, Frame, Network}
  alias Barytherium.Network.Sender
  alias Bench.Processor

  defmodule Bare do
    @moduledoc false
    use GenServer

    def init({port, which, counter}) do
      {:ok, network} = Network.start_link(self(), {127, 0, 0, 1}, port)
      {:ok, %{network: network, which: which, counter: counter}}
    end

    def handle_cast({:barytherium, :connect, {:ok, sender}}, state) do
      Sender.write(sender, [%Frame{command: :connect, headers: [{"accept-version", "1.2"}]}])
      {:noreply, state}
    end

    def handle_cast({:barytherium, :frames, {[%Frame{command: :connected}], sender}}, state) do
      # Its id is as long as one of a client.
      headers = [{"id", "1-AAAAAAAA"}, {"destination", "/queue/a"}, {"ack", "client-individual"}]
      Sender.write(sender, [%Frame{command: :subscribe, headers: headers}])
      {:noreply, state}
    end

    def handle_cast({:barytherium, :frames, {frames, sender}}, %{which: :each} = state) do
      for _frame <- frames, do: :counters.add(state.counter, 1, 1)
      Sender.write(sender, Enum.map(frames, &Frame.ack(&1, "1.2")))
      {:noreply, state}
    end

    def handle_cast({:barytherium, :frames, {frames, sender}}, %{which: :last} = state) do
      :counters.add(state.counter, 1, length(frames))
      Sender.write(sender, [frames |> List.last() |> Frame.ack("1.2")])
      {:noreply, state}
    end

    def handle_cast({:barytherium, :disconnect, reason}, _state), do: exit(reason)

    def handle_call(:network, _from, state), do: {:reply, state.network, state}
  end

  defmodule Each do
    @moduledoc false
    use Barytherium.Consumer, subscribe: "/queue/a"

    @impl true
    def handle_message(_frame, counter) do
      :counters.add(counter, 1, 1)
      {:ack, counter}
    end
  end

  defmodule Work do
    @moduledoc "As much work for each message as taking a body of 1.5 KB apart in Elixir: some 15 microseconds."
    use Barytherium.Consumer, subscribe: "/queue/a", key: {:header, "message-id"}

    @impl true
    def handle_message(frame, counter) do
      sum = for <<byte <- frame.body>>, reduce: 0, do: (sum -> rem(sum * 31 + byte, 65_521))
      if sum >= 0, do: :counters.add(counter, 1, 1)
      {:ack, counter}
    end
  end

  defmodule Last do
    @moduledoc false
    use Barytherium.Consumer, subscribe: {"/queue/a", ack: :client}

    @impl true
    def handle_batch(frames, counter) do
      :counters.add(counter, 1, length(frames))
      {:ack, counter}
    end
  end

  @doc """
  Messages handled and acknowledgements written per second, in `time` milliseconds, and microseconds of the processor
  for a message.
  """
  def measure(contender, which, port, time) do
    counter = :counters.new(1, [])
    pids = [network | _] = start(contender, which, port, counter)
    Process.sleep(div(time, 4))
    cpu = Processor.time()
    [handled, written] = counts(counter, network)
    Process.sleep(time)
    [handled_after, written_after] = counts(counter, network)
    cpu = Processor.time() - cpu
    handled = handled_after - handled
    Enum.each(pids, &Process.unlink/1)
    Enum.each(pids, &kill/1)

    %{
      messages: handled * 1000 / time,
      acknowledgements: (written_after - written) * 1000 / time,
      cpu: cpu * 1_000_000 / max(handled, 1)
    }
  end

  # The feed does not answer DISCONNECT, so an orderly end would take its time.
  defp kill(pid) do
    monitor = Process.monitor(pid)
    Process.exit(pid, :kill)
    receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> :ok)
  end

  defp counts(counter, network),
    do: [:counters.get(counter, 1), Network.stats(network).frames_written]

  defp start(:bare, which, port, counter) do
    {:ok, bare} = GenServer.start_link(Bare, {port, which, counter})
    [GenServer.call(bare, :network), bare]
  end

  defp start(:consumer, which, port, counter) do
    {module, opts} = consumer(which)
    url = "stomp://127.0.0.1:#{port}"
    {:ok, consumer} = module.start_link([url: url, init_arg: counter] ++ opts)
    [client] = Consumer.clients(consumer)
    [network(client), consumer, client]
  end

  defp consumer(:each), do: {Each, []}
  defp consumer(:last), do: {Last, []}
  defp consumer({:work, handlers}), do: {Work, handlers: handlers}

  # The client connects in the background.
  defp network(client) do
    with %{network: nil} <- Client.status(client) do
      Process.sleep(1)
      network(client)
    else
      %{network: network} -> network
    end
  end
end
