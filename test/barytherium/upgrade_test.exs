defmodule Barytherium.UpgradeTest do
  # It replaces modules, so nothing else may run meanwhile.
  use Barytherium.ClientCase, async: false

  defmodule Handler do
    use Barytherium.Consumer, subscribe: "/queue/a", backoff: {10, 10}

    @impl true
    def handle_message(_frame, state), do: {:ack, state}
  end

  # What a hot upgrade does: new code, and the old one is gone.
  defp upgrade(module, source) do
    name = "upgraded_#{System.unique_integer([:positive])}"
    changed = Regex.replace(~r/\nend\s*\z/, source, "\n@doc false\ndef #{name}, do: :ok\nend\n")
    Code.compile_string(changed)
    :code.purge(module)
    assert function_exported?(module, String.to_existing_atom(name), 0)
  end

  setup do
    Process.flag(:trap_exit, true)
    options = Code.compiler_options(ignore_module_conflict: true)
    on_exit(fn -> Code.compiler_options(options) end)
  end

  alias Barytherium.{Client, Consumer}

  for module <- [
        Client,
        Client.Endpoint,
        Client.Options,
        Client.Server,
        Consumer,
        Consumer.Options,
        Consumer.Worker
      ] do
    test "#{inspect(module)} can be replaced under a client and a consumer" do
      on_exit(fn ->
        :code.purge(unquote(module))
        :code.load_file(unquote(module))
      end)

      source = File.read!(unquote(module).module_info(:compile)[:source])
      {listener, url} = broker("me:secret@")
      opts = [url: url, passcode: fn -> "secret" end, backoff: {10, 10}]

      for {child, process} <- [
            {{Client, opts ++ [name: __MODULE__]}, fn _supervisor -> __MODULE__ end},
            {{Handler, opts}, &consumer_client/1}
          ] do
        {:ok, supervisor} = Supervisor.start_link([child], strategy: :one_for_one)
        peer = accept_connected(listener)
        upgrade(unquote(module), source)
        Peer.close(peer)
        accept_connected(listener)
        Process.exit(GenServer.whereis(process.(supervisor)), :kill)
        peer = accept_connected(listener)
        client = Process.monitor(GenServer.whereis(process.(supervisor)))
        Process.exit(supervisor, :kill)
        Peer.close(peer)
        # Its name must be free for the next test.
        assert_receive {:DOWN, ^client, :process, _pid, _reason}, 10_000
      end
    end
  end

  defp consumer_client(supervisor) do
    [{_id, consumer, _type, _modules}] = Supervisor.which_children(supervisor)
    hd(Consumer.clients(consumer))
  end
end
