defmodule Barytherium.TlsOptionsTest do
  @moduledoc """
  Options of TLS: client certificates, and which options choose `:ssl`.
  """
  use Barytherium.TlsCase, async: true

  import ExUnit.CaptureLog

  defp assert_accepted(context, client) do
    network = connect("localhost", context.port, context.trust ++ client)
    assert_connected()
    assert Network.stats(network).tls == context.trust[:tls]
  end

  defp openssl(arguments) do
    {_output, 0} = System.cmd("openssl", arguments, stderr_to_stdout: true)
  end

  for tls <- [:native, :otp] do
    describe "#{tls}, client certificates:" do
      @tls [tls: tls]
      setup [:directory]

      setup %{certificates: certificates, directory: directory} do
        files = Certificates.write!(certificates, directory)
        required = [verify: :verify_peer, fail_if_no_peer_cert: true]
        port = server(files.server ++ [cacertfile: files.client_cacertfile] ++ required)
        %{files: files, port: port, trust: @tls ++ [cacertfile: files.cacertfile]}
      end

      test "in files", %{files: files} = context do
        assert_accepted(context, files.client)
      end

      test "in one file", %{files: files, directory: directory} = context do
        both = Path.join(directory, "both.pem")
        File.write!(both, Enum.map(files.client, fn {_name, file} -> File.read!(file) end))
        assert_accepted(context, certfile: both)
      end

      test "in DER", context do
        assert_accepted(context, context.certificates.client)
        [cert: certificate, key: key] = context.certificates.client
        assert_accepted(context, cert: [certificate], key: key)
      end

      test "with a key of an elliptic curve", %{certificates: certificates} = context do
        path = &Path.join(context.directory, &1)
        make = ~w(req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj)
        openssl(make ++ ["/CN=ca", "-keyout", path.("ca_key"), "-out", path.("ca")])
        authority = ["-CA", path.("ca"), "-CAkey", path.("ca_key")]

        openssl(
          make ++ ["/CN=client", "-keyout", path.("key"), "-out", path.("cert")] ++ authority
        )

        openssl(["ec", "-in", path.("key"), "-out", path.("sec1")])

        required = [verify: :verify_peer, fail_if_no_peer_cert: true, cacertfile: path.("ca")]
        port = server(Keyword.delete(certificates.server, :cacerts) ++ required)
        context = %{context | port: port}

        for key <- ["key", "sec1"],
            do: assert_accepted(context, certfile: path.("cert"), keyfile: path.(key))

        [{:Certificate, certificate, _}] = :public_key.pem_decode(File.read!(path.("cert")))
        key = List.keyfind(:public_key.pem_decode(File.read!(path.("sec1"))), :ECPrivateKey, 0)
        assert_accepted(context, cert: certificate, key: {:ECPrivateKey, elem(key, 1)})
      end

      for {form, arguments} <- [
            {"PKCS #8", ~w(pkcs8 -topk8 -nocrypt)},
            {"encrypted PKCS #8", ~w(pkcs8 -topk8 -v2 aes-256-cbc -passout pass:secret)},
            {"encrypted PKCS #1", ~w(rsa -traditional -aes128 -passout pass:secret)}
          ] do
        test "with a key in #{form}", %{files: files, directory: directory} = context do
          key = Path.join(directory, "other_key.pem")
          in_out = ["-in", files.client[:keyfile], "-out", key]

          {_output, 0} =
            System.cmd("openssl", unquote(arguments) ++ in_out, stderr_to_stdout: true)

          client = [certfile: files.client[:certfile], keyfile: key]
          assert_accepted(context, client ++ [password: ~c"secret"])
        end
      end

      test "with a wrong password are an error without it in the log",
           %{files: files, directory: directory} = context do
        key = Path.join(directory, "encrypted_key.pem")
        arguments = ~w(pkcs8 -topk8 -v2 aes-256-cbc -passout pass:secret -in)
        openssl(arguments ++ [files.client[:keyfile], "-out", key])
        client = [certfile: files.client[:certfile], keyfile: key, password: ~c"not-the-secret"]

        log =
          capture_log(fn ->
            connect("localhost", context.port, context.trust ++ client)
            assert_refused(:options)
          end)

        assert log =~ "keyfile"
        refute log =~ "not-the-secret"
      end

      test "with a file that is no PEM are an error without its contents in the log",
           %{files: files, directory: directory} = context do
        key = Path.join(directory, "broken_key.pem")
        contents = "-----BEGIN PRIVATE KEY-----\nsecret!\n-----END PRIVATE KEY-----\n"
        File.write!(key, contents)
        client = [certfile: files.client[:certfile], keyfile: key]

        log =
          capture_log(fn ->
            connect("localhost", context.port, context.trust ++ client)
            assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, reason}}}
            # A process of `:ssl` crashes.
            assert reason == if(@tls[:tls] == :native, do: :options, else: :closed)
          end)

        refute log =~ "secret"

        if @tls[:tls] == :native do
          opts = [secure: true] ++ context.trust ++ client
          assert {:error, :options} = Connection.connect("localhost", context.port, opts)
        end
      end

      test "with the key of another certificate are an error", %{files: files} = context do
        client = [certfile: files.client[:certfile], keyfile: files.server[:keyfile]]
        connect("localhost", context.port, context.trust ++ client)
        assert_receive {:"$gen_cast", {:barytherium, event, reason}}
        # `:ssl` uses the key, and the server refuses the signature.
        if @tls[:tls] == :native, do: assert({event, reason} == {:connect, {:error, :options}})
      end
    end
  end

  describe "the choice of the implementation:" do
    setup %{certificates: %{server: server, cacerts: cacerts}} do
      %{port: server(server), trust: [cacerts: cacerts]}
    end

    for {name, options, tls} <- [
          {"native by default", [], :native},
          {"versions", [versions: [:"tlsv1.2"]], :native},
          {"ciphers with a name of OpenSSL", [ciphers: ["ECDHE-RSA-AES256-GCM-SHA384"]], :native},
          {"ciphers with a name of the IANA",
           [ciphers: [~c"TLS_AES_256_GCM_SHA384", ~c"TLS_AES_128_GCM_SHA256"]], :native},
          {"an old version", [versions: [:"tlsv1.1", :"tlsv1.2"]], :otp},
          {"an old cipher",
           [ciphers: [~c"ECDHE-RSA-AES256-GCM-SHA384", ~c"AES128-SHA"], versions: [:"tlsv1.2"]],
           :otp},
          {"an option of :ssl only", [depth: 3], :otp},
          {"tls: :otp", [tls: :otp], :otp}
        ] do
      test name, %{port: port, trust: trust} do
        network = connect("localhost", port, trust ++ unquote(Macro.escape(options)))
        assert_connected()
        assert Network.stats(network).tls == unquote(tls)
      end
    end

    for options <- [[cacerts: nil, cacertfile: "ca.pem"], [cacerts: []]] do
      test "no authorities: #{inspect(options)}", %{port: port} do
        connect("localhost", port, unquote(Macro.escape(options)))
        assert_receive {:"$gen_cast", {:barytherium, :connect, {:error, reason}}}
        assert reason in [:options, :unknown_ca]
      end
    end

    test "verify_fun", %{port: port} do
      trusting = {fn _certificate, _event, state -> {:valid, state} end, []}
      network = connect("localhost", port, verify_fun: trusting, cacerts: [])
      assert_connected()
      assert Network.stats(network).tls == :otp
    end

    test "suites in maps", %{port: port, trust: trust} do
      suite = :ssl.str_to_suite(~c"ECDHE-RSA-AES256-GCM-SHA384")
      network = connect("localhost", port, trust ++ [ciphers: [suite]])
      assert_connected()
      assert Network.stats(network).tls == :native
    end

    test "stats/1 has nil for plain TCP" do
      listener = Peer.listen(:tcp)
      {:ok, network} = Network.start_link(self(), "localhost", Peer.port(listener))
      Peer.accept(listener)
      assert Network.stats(network).tls == nil
    end
  end

  # Which of the two forms comes depends on the release of OTP.
  test "the log names options that :ssl finds incompatible, without their values" do
    options = [verify: :verify_none, password: "hunter2"]

    for reason <- [{:options, :incompatible, options}, {:options, {:incompatible, options}}] do
      assert Barytherium.Connection.Tls.describe(reason) == "incompatible: [:verify, :password]"
    end
  end
end
